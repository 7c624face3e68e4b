"""LAZ: unpacking compressed LAS records with lazrs, behind checks of every size that lazrs would take on trust.

Compressed data is a pointer to a table of chunks, the chunks, and the table. A chunk of point formats 6 to 10 begins
with one plain point, its number of points and the sizes of its layers, and those sizes lay out all chunks; a chunk of
point formats 0 to 5 is one stream of a fixed number of points. So the table, which could claim anything, is never read.
"""

import importlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lacuna_service.codecs.columns import Ask, clip
from lacuna_service.codecs.records import check_unpacked
from lacuna_service.errors import BadRequest, UnsupportedMedia

LASZIP_RECORD = (b"laszip encoded", 22204)
STREAMED, LAYERED = 2, 3
CHUNKS_VARY = 0xFFFFFFFF
EXTRA_BYTES = {STREAMED: 0, LAYERED: 14}
ITEMS = {
    STREAMED: {6: (20, 0), 7: (8, 0), 8: (6, 0), 9: (29, 0)},
    LAYERED: {10: (30, 9), 11: (6, 1), 12: (8, 2), 13: (29, 1)},
}
"""What a record is made of: of each item type the bytes and the layers. Extra bytes have one layer each."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the points were compressed, out of the LASzip variable record, checked."""

    record: bytes
    compressor: int
    chunk_points: int
    layers: int


def unpack(data: memoryview, points: int, record_size: int, how: Settings, ask: Ask) -> memoryview:
    """The plain records of `points` points; `data` is the file from its compressed points on."""
    check_unpacked(points * record_size, ask)
    out = bytearray(points * record_size)
    if not points:
        return memoryview(out)
    if how.compressor == LAYERED:
        chunks = _chunks(data, points, record_size, how)
        begin, end = 8, 8 + sum(size for _, size in chunks)
        _lazrs("decompress_points_with_chunk_table", bytes(data[begin:end]), how.record, out, chunks)
    else:
        empty_table = struct.pack("<II", 0, 0)
        _lazrs(
            "decompress_points", struct.pack("<q", len(data)) + bytes(data[8:]) + empty_table, how.record, out, False
        )
    return memoryview(out)


def settings(described: memoryview, records: int, record_size: int) -> Settings:
    """Find the LASzip record among the file's variable records, and check it against the size of a point."""
    record = _find(described, records)
    items = struct.unpack_from("<H", record, 32)[0] if len(record) >= 34 else 0
    if items == 0 or len(record) < 34 + 6 * items:
        raise BadRequest(f"LAZ: a LASzip record of {len(record)} bytes cannot hold its {items} items of 6 bytes")
    compressor, chunk_points = struct.unpack_from("<H10xI", record)
    if compressor not in ITEMS or (compressor == STREAMED and chunk_points == CHUNKS_VARY):
        raise UnsupportedMedia(f"LAZ: compressor {compressor} with chunks of {chunk_points} points; write LAS instead")
    if chunk_points == 0:
        raise BadRequest("LAZ: chunks of 0 points")
    listed = [struct.unpack_from("<HH", record, 34 + 6 * at) for at in range(items)]
    layers = sum(_layers(compressor, *item) for item in listed)
    if listed[0][0] not in (6, 10) or sum(size for _, size in listed) != record_size:
        raise BadRequest(f"LAZ: items {listed[:8]} of (type, bytes) do not make a point of {record_size} bytes")
    return Settings(record, compressor, chunk_points, layers)


def _layers(compressor: int, item: int, size: int) -> int:
    if item == EXTRA_BYTES[compressor] and size > 0:
        return size
    known, layers = ITEMS[compressor].get(item, (0, 0))
    if known == 0 or known != size:
        raise BadRequest(f"LAZ: compressor {compressor} has no item of type {item} and {size} bytes")
    return layers


def _find(described: memoryview, records: int) -> bytes:
    at = 0
    for _ in range(records):
        if at + 54 > len(described):
            break
        user, kind, size = struct.unpack_from("<2x16sHH", described, at)
        if (user.rstrip(b"\0"), kind) == LASZIP_RECORD:
            return bytes(described[at + 54 : at + 54 + size])
        at += 54 + size
    raise BadRequest("LAZ: the points are compressed, but no LASzip record says how")


def _chunks(data: memoryview, points: int, record_size: int, how: Settings) -> list[tuple[int, int]]:
    """Points and bytes of each chunk."""
    chunks, at, left = [], 8, points
    sizes = struct.Struct(f"<I{how.layers}I")
    while left > 0:
        if at + record_size + sizes.size > len(data):
            raise BadRequest(f"LAZ: the file ends {left} points before the {points} that are declared")
        in_chunk, *layers = sizes.unpack_from(data, at + record_size)
        count = in_chunk if how.chunk_points == CHUNKS_VARY else min(how.chunk_points, left)
        size = record_size + sizes.size + sum(layers)
        if not 1 <= count <= left or at + size > len(data):
            raise BadRequest(
                f"LAZ: a chunk of {count} points and {size} bytes at byte {at} of {len(data)}, "
                f"with {left} points left of {points}"
            )
        chunks.append((count, size))
        at, left = at + size, left - count
    return chunks


def _lazrs(function: str, *arguments: Any) -> None:
    try:
        run: Callable[..., None] = getattr(importlib.import_module("lazrs"), function)
    except ModuleNotFoundError:
        text = "LAZ is read by an optional package: pip install '.[formats]' in a checkout of Lacuna"
        raise UnsupportedMedia(text) from None
    try:
        run(*arguments)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic arrives as a BaseException
        raise BadRequest(f"LAZ: the compressed points cannot be unpacked: {clip(str(error))[1:-1]}") from None
