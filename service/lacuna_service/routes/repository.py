"""The model repository extension: index, load, unload."""

from typing import Any

import orjson
from fastapi import APIRouter, Request

from lacuna_service.body import read_body
from lacuna_service.engine import Engine
from lacuna_service.errors import BadRequest

BODY_LIMIT_BYTES = 64 * 1024


def repository_router(engine: Engine, *, may_change: bool) -> APIRouter:
    """Index for all; load and unload only where the operator allows clients to change what is served."""
    router = APIRouter(tags=["repository"], prefix="/v2/repository")

    @router.post("/index")
    async def index(request: Request) -> list[dict[str, str]]:
        only_ready = (await _document(request)).get("ready") is True
        entries = [entry for entry in engine.index() if entry.state == "READY" or not only_ready]
        return [
            {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
            for entry in entries
        ]

    @router.post("/models/{model}/load")
    async def load(model: str, request: Request) -> dict[str, str]:
        _check_allowed(may_change)
        parameters = (await _document(request)).get("parameters") or {}
        if not isinstance(parameters, dict) or any(key == "config" or key.startswith("file:") for key in parameters):
            raise BadRequest("a model is loaded as it lies in the repository: 'config' and 'file:' are not taken")
        await engine.load(model)
        return {}

    @router.post("/models/{model}/unload")
    async def unload(model: str, request: Request) -> dict[str, str]:
        _check_allowed(may_change)
        await _document(request)
        await engine.unload(model)
        return {}

    return router


def _check_allowed(may_change: bool) -> None:
    if not may_change:
        raise BadRequest("loading and unloading are off: start the server with --model-control explicit")


async def _document(request: Request) -> dict[str, Any]:
    """A body that may be empty, as an object."""
    body = bytes(await read_body(request.receive, request.headers, BODY_LIMIT_BYTES))
    try:
        document = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the request is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadRequest(f"the request must be a JSON object, got {type(document).__name__}")
    return document
