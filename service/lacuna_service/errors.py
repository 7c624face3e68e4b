"""What can go wrong with a request, by whose fault it is: each class carries the HTTP status that says so."""

from typing import ClassVar


class ServiceError(Exception):
    """The service failed; the message is what the client reads."""

    status: ClassVar[int] = 500


class BadRequest(ServiceError):  # noqa: N818 - named as HTTP names it
    """The request is malformed; the message says how, and what would be right."""

    status = 400


class TooLarge(ServiceError):  # noqa: N818
    """The request is well formed but above a stated limit."""

    status = 413


class UnsupportedMedia(ServiceError):  # noqa: N818
    """The body has a format or encoding that this server does not read."""

    status = 415
