"""Probes, metrics and the version, for whoever runs the server."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from lacuna_service.engine import Engine
from lacuna_service.errors import NotReady
from lacuna_service.metrics import Metrics

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""What needs no API key."""


def health_router(engine: Engine, metrics: Metrics, version: str) -> APIRouter:
    """Liveness, readiness, version and metrics."""
    router = APIRouter(tags=["operation"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> dict[str, str]:
        if not engine.ready:
            raise NotReady("the server is starting or stopping, or has lost its device", retry_after_s=1)
        return {"status": "ready"}

    @router.get("/version")
    async def running_version() -> dict[str, str]:
        return {"version": version}

    @router.get("/metrics", response_class=Response)
    async def scrape() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
