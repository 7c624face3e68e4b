"""What can go wrong with a request, as one family of exceptions; the message is the server's own text."""

from __future__ import annotations

import json
from collections.abc import Mapping


class LacunaError(Exception):
    """A request failed. `status` is the HTTP status, or None if no answer came."""

    def __init__(self, message: str, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class BadRequest(LacunaError):
    """The request was malformed or did not fit the model: the caller's fault (400, and 4xx without a class)."""


class Unauthorized(LacunaError):
    """The server wants an API key, or another one (401, 403)."""


class NotFound(LacunaError):
    """No such model, version or address (404)."""


class TooLarge(LacunaError):
    """The request is above a limit of the server or the model (413)."""


class UnsupportedMedia(LacunaError):
    """The server does not read this kind of file or encoding (415)."""


class ServerError(LacunaError):
    """The server failed (5xx)."""


class Unavailable(ServerError):
    """The server has no room now, or the model is not ready (503); try again after `retry_after_s`, if given."""


class DeadlineExceeded(ServerError):
    """The server could not answer within the request's deadline (504)."""


class ConnectionFailed(LacunaError):
    """No answer came: nobody listens, the connection broke, or the address is wrong."""


class TimedOut(ConnectionFailed):
    """No answer came within the client's own timeout."""


class ProtocolError(LacunaError):
    """The answer is not what the protocol says: another kind of server, or a damaged body."""


BY_STATUS: dict[int, type[LacunaError]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    413: TooLarge,
    415: UnsupportedMedia,
    503: Unavailable,
    504: DeadlineExceeded,
}


def error_for(status: int, body: bytes, headers: Mapping[str, str]) -> LacunaError:
    """The exception for an answer that is not a success."""
    kind = BY_STATUS.get(status, BadRequest if 400 <= status < 500 else ServerError if status >= 500 else ProtocolError)
    return kind(message_of(status, body), status, seconds(headers.get("retry-after")))


def message_of(status: int, body: bytes) -> str:
    """The server's text, from `{"error": text}`; or, of another body, its beginning."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        return str(answer["error"])
    start = body[:200].decode("utf-8", errors="replace").strip()
    return f"HTTP status {status}" + (f": {start}" if start else "")


def seconds(retry_after: str | None) -> float | None:
    """Retry-After as seconds; its other form, a date, is left aside."""
    try:
        wait = float(retry_after or "")
    except ValueError:
        return None
    return wait if 0 <= wait < float("inf") else None
