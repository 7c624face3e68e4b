"""Server and model metadata, readiness, configuration and statistics."""

from typing import Any

from fastapi import APIRouter

from lacuna_service.engine import Engine
from lacuna_service.errors import NotReady
from lacuna_service.routes.metadata import model_config, model_metadata

EXTENSIONS = [
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "statistics",
]


def server_router(engine: Engine, version: str) -> APIRouter:
    """The server itself: what it is, and whether it answers."""
    router = APIRouter(tags=["server"])

    @router.get("/v2")
    async def server_metadata() -> dict[str, Any]:
        return {"name": "lacuna", "version": version, "extensions": EXTENSIONS}

    @router.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        if not engine.ready:
            raise NotReady("the server is starting or stopping, or has lost its device", retry_after_s=1)
        return {"ready": True}

    return router


def models_router(engine: Engine) -> APIRouter:
    """One model, or one version of it: metadata, readiness, configuration, statistics."""
    router = APIRouter(tags=["models"])

    @router.get("/v2/models/stats")
    async def all_statistics() -> dict[str, Any]:
        served = [entry for entry in engine.index() if entry.state == "READY"]
        return {"model_stats": [_statistics(engine, entry.name, entry.version) for entry in served]}

    @router.get("/v2/models/{model}")
    @router.get("/v2/models/{model}/versions/{version}")
    async def metadata(model: str, version: str | None = None) -> dict[str, Any]:
        found = engine.get(model, version)
        ready = [entry.version for entry in engine.index() if entry.name == model and entry.state == "READY"]
        return model_metadata(found, ready)

    @router.get("/v2/models/{model}/ready")
    @router.get("/v2/models/{model}/versions/{version}/ready")
    async def model_ready(model: str, version: str | None = None) -> dict[str, Any]:
        found = engine.get(model, version)
        if not found.ready:
            raise NotReady(f"model {found.name!r} version {found.version} is not ready", retry_after_s=1)
        return {"name": found.name, "version": found.version, "ready": True}

    @router.get("/v2/models/{model}/config")
    @router.get("/v2/models/{model}/versions/{version}/config")
    async def config(model: str, version: str | None = None) -> dict[str, Any]:
        return model_config(engine.get(model, version))

    @router.get("/v2/models/{model}/stats")
    @router.get("/v2/models/{model}/versions/{version}/stats")
    async def statistics(model: str, version: str | None = None) -> dict[str, Any]:
        return {"model_stats": [_statistics(engine, model, version)]}

    return router


def _statistics(engine: Engine, name: str, version: str | None) -> dict[str, object]:
    model = engine.get(name, version)
    return model.statistics.document(model.name, model.version)
