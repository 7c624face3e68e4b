"""PCD, the Point Cloud Library's format: a text header, then text, rows, or LZF-compressed columns.

Sizes and types are F 4 8, I and U 1 2 4 8; a field of COUNT above 1 is skipped; VIEWPOINT is ignored. Text and rows
must be exactly as long as POINTS says; what follows compressed data is ignored.
"""

from typing import NamedTuple

import lzf
import numpy as np
from numpy.typing import NDArray

from lacuna_service.codecs.columns import Ask, Fields, check_points, clip, select
from lacuna_service.codecs.records import (
    FIELDS_LIMIT,
    HEADER_LIMIT_BYTES,
    ROW_LIMIT_BYTES,
    Field,
    Row,
    check_unpacked,
    text_lines,
    whole,
)
from lacuna_service.errors import BadRequest

KEYS = ("VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS", "DATA")
TYPES = {("F", "4"), ("F", "8"), *((kind, size) for kind in "IU" for size in "1248")}
LZF_BEST_RATIO = 264 / 3
"""No three bytes of LZF stand for more than 264."""


class Header(NamedTuple):
    """What a PCD header says, checked."""

    row: Row
    points: int
    storage: str


def read(body: memoryview, ask: Ask) -> NDArray[np.float32]:
    """Read a PCD of any storage; raises BadRequest or TooLarge before anything of the declared size is made."""
    lines, end = _split(body)
    header = _parse(lines)
    return select(READERS[header.storage](body[end:], header, ask), ask)


def _read_text(data: memoryview, header: Header, ask: Ask) -> Fields:
    shortest = header.points * header.row.values * 2 - 1
    if len(data) < shortest:
        raise BadRequest(
            f"PCD: {header.points} points of {header.row.values} numbers take at least {shortest} characters, "
            f"but {len(data)} follow the header"
        )
    check_points(header.points, ask)
    lines = text_lines(data)
    fields = header.row.parse(lines, header.points, "PCD")
    if next(lines, None) is not None:
        raise BadRequest(f"PCD: POINTS is {header.points}, but more lines follow")
    return fields


def _read_rows(data: memoryview, header: Header, ask: Ask) -> Fields:
    expected = header.points * header.row.size
    if len(data) != expected:
        raise BadRequest(
            f"PCD: {header.points} points of {header.row.size} bytes take {expected} bytes, "
            f"but {len(data)} follow the header"
        )
    check_points(header.points, ask)
    return header.row.views(data, header.points)


def _read_compressed(data: memoryview, header: Header, ask: Ask) -> Fields:
    unpacked = header.points * header.row.size
    if header.points == 0:
        return header.row.column_views(memoryview(b""), 0)
    if len(data) < 8:
        raise BadRequest(
            f"PCD: compressed data begins with two sizes of 4 bytes, but {len(data)} bytes follow the header"
        )
    packed, declared = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
    if packed > len(data) - 8:
        raise BadRequest(f"PCD: {packed} compressed bytes are declared, but {len(data) - 8} follow")
    if declared != unpacked:
        raise BadRequest(
            f"PCD: {header.points} points of {header.row.size} bytes take {unpacked} bytes, "
            f"but the compressed data is declared to unpack to {declared}"
        )
    if unpacked > packed * LZF_BEST_RATIO:
        raise BadRequest(f"PCD: {packed} bytes of LZF cannot unpack to {unpacked}")
    check_points(header.points, ask)
    check_unpacked(unpacked, ask)
    return header.row.column_views(memoryview(_unpack(bytes(data[8 : 8 + packed]), unpacked)), header.points)


READERS = {"ascii": _read_text, "binary": _read_rows, "binary_compressed": _read_compressed}


def _unpack(packed: bytes, size: int) -> bytes:
    try:
        unpacked: bytes | None = lzf.decompress(packed, size)
    except ValueError:
        raise BadRequest("PCD: the compressed data is not valid LZF") from None
    if unpacked is None or len(unpacked) != size:
        more = "more" if unpacked is None else str(len(unpacked))
        raise BadRequest(f"PCD: the compressed data should unpack to {size} bytes, it holds {more}")
    return unpacked


def _split(body: memoryview) -> tuple[dict[str, list[str]], int]:
    head = bytes(body[:HEADER_LIMIT_BYTES])
    lines: dict[str, list[str]] = {}
    begin = 0
    while "DATA" not in lines:
        end = head.find(b"\n", begin)
        if end < 0:
            raise BadRequest(f"PCD: no DATA line in the first {len(head)} bytes")
        line = head[begin:end].decode("latin-1").strip()
        begin = end + 1
        if not line or line.startswith("#"):
            continue
        key, *values = line.split()
        if key not in KEYS:
            raise BadRequest(f"PCD: unknown header line {clip(line)}; known are {' '.join(KEYS)}")
        lines[key] = values
    return lines, begin


def _parse(lines: dict[str, list[str]]) -> Header:
    names = lines.get("FIELDS", [])
    if not 1 <= len(names) <= FIELDS_LIMIT:
        raise BadRequest(f"PCD: FIELDS must name 1 to {FIELDS_LIMIT} fields, it names {len(names)}")
    columns = (names, *(_one_each(lines, key, names) for key in ("TYPE", "SIZE", "COUNT")))
    row = Row(tuple(_field(*entry) for entry in zip(*columns, strict=True)))
    if row.size > ROW_LIMIT_BYTES:
        raise BadRequest(f"PCD: a point takes {row.size} bytes, the limit is {ROW_LIMIT_BYTES}")
    storage = " ".join(lines["DATA"])
    if storage not in READERS:
        raise BadRequest(f"PCD: DATA is {clip(storage)}, known are {', '.join(READERS)}")
    return Header(row, _points(lines), storage)


def _one_each(lines: dict[str, list[str]], key: str, names: list[str]) -> list[str]:
    values = lines.get(key, ["1"] * len(names) if key == "COUNT" else [])
    if len(values) != len(names):
        raise BadRequest(f"PCD: {len(names)} FIELDS need as many entries of {key}, there are {len(values)}")
    return values


def _field(name: str, kind: str, size: str, count: str) -> Field:
    if (kind, size) not in TYPES:
        raise BadRequest(
            f"PCD: field {clip(name)} has TYPE {clip(kind)} SIZE {clip(size)}; known are F 4 8, I and U 1 2 4 8"
        )
    times = whole(count, f"PCD: COUNT of field {clip(name)}")
    if times == 0:
        raise BadRequest(f"PCD: COUNT of field {clip(name)} must be at least 1, got 0")
    return Field(name, np.dtype(f"<{kind.lower()}{size}"), times)


def _points(lines: dict[str, list[str]]) -> int:
    count = {key: whole(" ".join(lines[key]), f"PCD: {key}") for key in ("WIDTH", "HEIGHT", "POINTS") if key in lines}
    if "WIDTH" not in count and "POINTS" not in count:
        raise BadRequest("PCD: the header gives neither POINTS nor WIDTH and HEIGHT")
    if "WIDTH" not in count:
        return count["POINTS"]
    grid = count["WIDTH"] * count.get("HEIGHT", 1)
    if count.get("POINTS", grid) != grid:
        raise BadRequest(
            f"PCD: POINTS is {count['POINTS']}, but WIDTH {count['WIDTH']} x HEIGHT {count.get('HEIGHT', 1)} is {grid}"
        )
    return grid
