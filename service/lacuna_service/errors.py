"""What can go wrong with a request, by whose fault it is: each class carries the HTTP status that says so.

| status | class | whose fault |
|---|---|---|
| 400 | BadRequest | the client's: malformed, or not what the model takes |
| 401 | Unauthorized | the client's: no API key, or a wrong one |
| 404 | NotFound | the client's: no such model or version (of paths and methods, the framework says 404 and 405) |
| 406 | NotAcceptable | the client's: no format of `Accept` can be written |
| 413 | TooLarge | the client's: above a stated limit |
| 415 | UnsupportedMedia | the client's: a format or encoding that is not read here |
| 503 | QueueFull, NotReady, OutOfMemory | nobody's: try again later |
| 504 | DeadlineExceeded | nobody's: the time that the request allowed is over |
| 500 | Internal, any other exception | ours |
"""

from typing import ClassVar


class ServiceError(Exception):
    """The service failed; the message is what the client reads.

    outcome        name of the error in metrics and logs
    retry_after_s  when to try again, if that may help
    """

    status: ClassVar[int] = 500
    outcome: ClassVar[str] = "internal"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BadRequest(ServiceError):
    """The request is malformed; the message says how, and what would be right."""

    status, outcome = 400, "bad_request"


class Unauthorized(ServiceError):
    """The API key is missing or wrong."""

    status, outcome = 401, "unauthorized"


class NotFound(ServiceError):
    """There is no such model or version."""

    status, outcome = 404, "not_found"


class NotAcceptable(ServiceError):
    """None of the formats that the client accepts can be written."""

    status, outcome = 406, "not_acceptable"


class TooLarge(ServiceError):
    """The request is well formed but above a stated limit."""

    status, outcome = 413, "too_large"


class UnsupportedMedia(ServiceError):
    """The body has a format or encoding that this server does not read."""

    status, outcome = 415, "unsupported_media"


class QueueFull(ServiceError):
    """The model's queue is full, or would make the request miss its deadline."""

    status, outcome = 503, "queue_full"


class NotReady(ServiceError):
    """The model or the server is loading, unloaded, broken or shutting down; the message says which."""

    status, outcome = 503, "not_ready"


class OutOfMemory(ServiceError):
    """The device has no memory for this request, even alone."""

    status, outcome = 503, "out_of_memory"


class DeadlineExceeded(ServiceError):
    """The request was not answered within the time that it, or the model, allows."""

    status, outcome = 504, "deadline_exceeded"


class Internal(ServiceError):
    """We failed; the log of the request's id says more."""
