"""Bodies over ASGI: read up to a limit, decompressed within the same limit, compressed when asked."""

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, ParamSpec, TypeVar

import numpy as np

from lacuna_service.codecs.columns import clip
from lacuna_service.errors import BadRequest, TooLarge, UnsupportedMedia

P = ParamSpec("P")
R = TypeVar("R")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Body = bytearray | memoryview
ReadInto = Callable[[memoryview], bool]

READ_INTO = "lacuna.read_into"
"""An extension of ASGI, `scope["extensions"][READ_INTO]`: the server reads a body straight into memory that is as long
as its Content-Length. Called before `receive`, it says whether it does: the parts that come then are empty."""

INLINE_BYTES = 128 * 1024
"""Up to this size, work on a body costs the event loop less than a hop to a thread, and a body comes in parts."""

BYTES_PASSED_PER_PARSED = 32
"""Of points and labels, so many bytes are checked or copied while one is parsed or compressed."""

COMPRESS_FROM_BYTES = 4096
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class Disconnected(Exception):
    """The client went away before its request was whole."""


async def read_body(
    receive: Receive, headers: Mapping[str, str], limit: int, read_into: ReadInto | None = None
) -> Body:
    """Read and decompress a body into writable memory of its own.

    limit      in bytes, for the body as sent and as decompressed
    read_into  the server's extension, if it has it
    Raises TooLarge, BadRequest, UnsupportedMedia, Disconnected.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", *_WINDOW_BITS):
        raise UnsupportedMedia(f"Content-Encoding {clip(encoding)} is not read here; known are gzip and deflate")
    body = await _receive_all(receive, _announced(headers), limit, read_into)
    if encoding not in _WINDOW_BITS:
        return body
    return await offload(len(body) * 8, decompress, body, encoding, limit)


async def offload(size: int, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Do work on `size` bytes here if they are few, else on a thread, so that the event loop stays free."""
    if size <= INLINE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def decompress(body: bytes | Body, encoding: str, limit: int) -> bytearray:
    """Undo gzip or deflate (with zlib's header, or raw) without ever making more than `limit` bytes."""
    bits = _WINDOW_BITS[encoding]
    if encoding == "deflate" and not _has_zlib_header(body):
        bits = -zlib.MAX_WBITS
    reader = zlib.decompressobj(bits)
    try:
        out = bytearray(reader.decompress(body, limit + 1))
    except zlib.error as error:
        raise BadRequest(f"the body is not {encoding}: {error}") from error
    if len(out) > limit:
        raise TooLarge(f"the body has more than {limit} bytes after decompression, the limit")
    if not reader.eof:
        raise BadRequest(f"the {encoding} body is cut short")
    if reader.unused_data:
        raise BadRequest(f"{len(reader.unused_data)} bytes follow the {encoding} data")
    return out


def choose_encoding(accept: str | None, size: int) -> str | None:
    """How to compress an answer of `size` bytes: only if the client asks for it, and if it is worth it."""
    if not accept or size < COMPRESS_FROM_BYTES:
        return None
    allowed = preferences(accept)
    return next((encoding for encoding in _WINDOW_BITS if encoding in allowed), None)


def preferences(accept: str) -> list[str]:
    """What an Accept or Accept-Encoding header names, in lower case, best first; without what it refuses by q=0."""
    weighed = [_weighed(entry) for entry in accept.lower().split(",")]
    return [name for quality, name in sorted(weighed, key=lambda entry: -entry[0]) if quality > 0]


def _weighed(entry: str) -> tuple[float, str]:
    name, *rest = (part.strip() for part in entry.split(";"))
    quality = next((part[2:] for part in rest if part.startswith("q=")), "1")
    try:
        return float(quality), name
    except ValueError:
        return 0.0, name


def compress(body: bytes, encoding: str) -> bytes:
    """Compress an answer, fast rather than small: deflate means zlib's format, as HTTP has it."""
    return gzip.compress(body, 1, mtime=0) if encoding == "gzip" else zlib.compress(body, 1)


def _has_zlib_header(body: bytes | Body) -> bool:
    return len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0


def _announced(headers: Mapping[str, str]) -> int | None:
    text = headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise BadRequest(f"Content-Length must be a whole number, got {clip(text)}")
    return int(text.lstrip("0")[:19] or "0")  # what is cut off is over every limit all the same


async def _receive_all(receive: Receive, announced: int | None, limit: int, read_into: ReadInto | None) -> Body:
    """Read straight to where the body stays, or gather the parts, whose memory grows with what has come."""
    if announced is not None and announced > limit:
        raise TooLarge(f"the body has {announced} bytes, the limit is {limit}")
    straight = _read_straight(announced or 0, read_into)
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Disconnected
        part, more = message.get("body", b""), message.get("more_body", False)
        if len(body) + len(part) > limit:
            raise TooLarge(f"the body has more than {limit} bytes, the limit")
        body += part
    return body if straight is None else straight


def _read_straight(size: int, read_into: ReadInto | None) -> memoryview | None:
    """Have a large body read straight to where it stays; pages of that memory are taken as they are written to.

    None if it comes in parts, as it does where there are no addresses left for what may never come.
    """
    if read_into is None or size <= INLINE_BYTES:
        return None
    try:
        memory = np.empty(size, np.uint8).data
    except MemoryError:
        return None
    return memory if read_into(memory) else None
