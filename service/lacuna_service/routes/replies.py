"""Answers as ASGI messages: JSON errors for every failure, and compression for who asks for it."""

import math
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from lacuna_service.body import choose_encoding, compress, offload
from lacuna_service.errors import ServiceError

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole answer."""

    body: bytes
    content_type: str = "application/json"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    async def send(self, send: Send, accept_encoding: str | None = None) -> int:
        """Send it, compressed if the client asks for that and it is worth it; returns the bytes of the body sent."""
        body, headers = self.body, {"content-type": self.content_type, **self.headers}
        encoding = choose_encoding(accept_encoding, len(body))
        if encoding is not None:
            body = await offload(len(body), compress, body, encoding)
            headers |= {"content-encoding": encoding, "vary": "Accept-Encoding"}
        headers["content-length"] = str(len(body))
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        await send({"type": "http.response.body", "body": body})
        return len(body)


def error_reply(status: int, message: str, headers: dict[str, str] | None = None) -> Reply:
    """The answer to a request that failed: `{"error": message}`."""
    return Reply(orjson.dumps({"error": message}), status=status, headers=headers or {})


def reply_to_error(error: ServiceError) -> Reply:
    """The answer that an error of ours stands for."""
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    return error_reply(error.status, str(error), headers)
