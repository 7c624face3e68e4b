"""The application: every route, what an error becomes, and when the engine starts and stops."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from lacuna_kernels import KernelsError
from lacuna_service.engine import Engine
from lacuna_service.errors import BadRequest, ServiceError
from lacuna_service.front import Front
from lacuna_service.openapi import inference_paths
from lacuna_service.routes.health import OPEN_PATHS, health_router
from lacuna_service.routes.infer import Infer
from lacuna_service.routes.models import models_router, server_router
from lacuna_service.routes.pointcloud import PointCloud
from lacuna_service.routes.replies import Reply, error_reply, reply_to_error
from lacuna_service.routes.repository import repository_router
from lacuna_service.settings import Settings

logger = logging.getLogger(__name__)
ENGINE_STOP_S = 5.0
"""Longest wait for the device after the last answer was sent, or given up."""


class Application(FastAPI):
    """FastAPI with the inference paths in its OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document of every path."""
        document = super().openapi()
        document["paths"] |= inference_paths()
        return document


def create_app(
    settings: Settings, engine: Engine, version: str, on_failure: Callable[[], None] = lambda: None
) -> FastAPI:
    """Put an engine behind HTTP.

    The engine starts in the background when the application does, so that probes are answered while models load;
    `on_failure` is called if it cannot start.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(_start(engine, on_failure))
        yield
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await engine.stop(min(ENGINE_STOP_S, settings.drain_s))

    app = Application(title="Lacuna", version=version, lifespan=lifespan, redirect_slashes=False)
    _add_routes(app, settings, engine, version)
    _add_errors(app)
    app.add_middleware(Front, api_key=settings.api_key, open_paths=OPEN_PATHS, access_log=settings.access_log)
    return app


async def _start(engine: Engine, on_failure: Callable[[], None]) -> None:
    try:
        await engine.start()
    except Exception as error:
        foreseen = isinstance(error, (OSError, KernelsError))
        logger.critical("the server cannot start: %s", error, exc_info=None if foreseen else error)
        on_failure()
    else:
        entries = engine.index()
        if not entries:
            logger.warning("there is no model in %s", engine.config.repository)
        for entry in entries:
            logger.info(
                "model",
                extra={"model": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason},
            )
        logger.info("ready")


def _add_routes(app: FastAPI, settings: Settings, engine: Engine, version: str) -> None:
    metrics = engine.metrics
    inference = [
        Route(f"/v2/models/{place}/{name}", kind(engine, metrics, settings.body_limit_bytes), methods=["POST"])
        for name, kind in (("infer", Infer), ("pointcloud", PointCloud))
        for place in ("{model}", "{model}/versions/{version}")
    ]
    app.router.routes[:0] = inference  # first, because routes are tried in order
    app.include_router(health_router(engine, metrics, version))
    app.include_router(server_router(engine, version))
    app.include_router(models_router(engine))
    app.include_router(repository_router(engine, may_change=settings.model_control == "explicit"))


def _add_errors(app: FastAPI) -> None:
    async def service_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return _response(reply_to_error(error))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = f"{request.method} {ascii(request.url.path[:200])[1:-1]}: {str(error.detail).lower()}"
        return _response(error_reply(error.status_code, text, dict(error.headers or {})))

    async def invalid(_: Request, error: Exception) -> Response:
        return _response(reply_to_error(BadRequest(f"the request is not valid: {error}")))

    app.add_exception_handler(ServiceError, service_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)


def _response(reply: Reply) -> Response:
    return Response(reply.body, reply.status, reply.headers, reply.content_type)
