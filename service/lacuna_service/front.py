"""The front door, before any route: request ids, the API key, the access log, and an answer for what nobody foresaw."""

import hmac
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

from lacuna_service.body import Receive
from lacuna_service.errors import Unauthorized
from lacuna_service.logs import request_id
from lacuna_service.routes.replies import Send, error_reply, reply_to_error

logger = logging.getLogger(__name__)
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
GIVEN_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Front:
    """ASGI middleware around the whole application."""

    def __init__(self, app: AsgiApp, *, api_key: str | None, open_paths: Collection[str], access_log: bool) -> None:
        self._app, self._open_paths, self._access_log = app, open_paths, access_log
        self._api_key = None if api_key is None else api_key.encode()
        self._ids = random.Random()  # noqa: S311 - no secrets, and those of the kernel cost a system call each

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, under an id that its answer and its log lines carry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        current = given if GIVEN_ID.fullmatch(given) else b"%016x" % self._ids.getrandbits(64)
        token, began, status = request_id.set(current.decode()), time.perf_counter(), 0

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", current)]
            await send(message)

        try:
            if self._refuses(scope, headers):
                await reply_to_error(Unauthorized("this server wants `Authorization: Bearer KEY`")).send(send_with_id)
            else:
                await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("unforeseen error", extra={"path": scope["path"]})
            if status:
                raise
            text = f"internal error; the server's log has it under request id {current.decode()}"
            await error_reply(500, text).send(send_with_id)
        finally:
            if self._access_log:
                self._log(scope, status, time.perf_counter() - began)
            request_id.reset(token)

    def _refuses(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> bool:
        if self._api_key is None or scope["path"] in self._open_paths:
            return False
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._api_key)

    def _log(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        logger.info(
            "request",
            extra={
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "milliseconds": round(seconds * 1000, 3),
                "client": (scope.get("client") or ("",))[0],
            },
        )
