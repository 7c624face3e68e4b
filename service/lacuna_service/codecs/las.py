"""LAS, and LAZ, its compressed form: ASPRS's format of surveys, versions 1.0 to 1.4, point formats 0 to 10.

LAS is read here, without a library. LAZ takes `lazrs` out of the extra `[formats]`; it trusts sizes inside the file, so
`laz` checks all of them first.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lacuna_service.codecs import laz
from lacuna_service.codecs.columns import Ask, Fields, check_points, select
from lacuna_service.codecs.records import Field, Row
from lacuna_service.errors import BadRequest

SMALLEST_RECORD = (20, 28, 26, 34, 57, 63, 30, 36, 38, 59, 67)
COLOURS_AT = {2: 20, 3: 28, 5: 28, 7: 30, 8: 30, 10: 30}
HEADER_BYTES = 227
HEADER_BYTES_1_4 = 375


@dataclass(frozen=True, slots=True)
class Header:
    """What the public header says, checked against the length of the file."""

    points: int
    point_format: int
    compressed: bool
    record_size: int
    data_at: int
    variable_records_at: int
    variable_records: int
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]


def read(body: memoryview, ask: Ask) -> NDArray[np.float32]:
    """Read a LAS or LAZ: x y z in metres by the header's scale and offset, uint16 intensity and colours as 0..1."""
    header = _parse(body)
    data = body[header.data_at :]
    if not header.compressed:
        _check_length(header, len(data))
    check_points(header.points, ask)
    if header.compressed:
        described = body[header.variable_records_at : header.data_at]
        settings = laz.settings(described, header.variable_records, header.record_size)
        data = laz.unpack(data, header.points, header.record_size, settings, ask)
    fields = _row(header).views(data, header.points)
    return select(fields | _coordinates(fields, header), ask)


def _check_length(header: Header, available: int) -> None:
    expected = header.points * header.record_size
    if expected > available:
        raise BadRequest(
            f"LAS: {header.points} points of {header.record_size} bytes take {expected} bytes, "
            f"but {available} follow the header"
        )


def _coordinates(fields: Fields, header: Header) -> Fields:
    with np.errstate(over="ignore", invalid="ignore"):
        return {
            name: fields[name] * scale + offset
            for name, scale, offset in zip("xyz", header.scale, header.offset, strict=True)
        }


def _row(header: Header) -> Row:
    i4, u2, u1 = np.dtype("<i4"), np.dtype("<u2"), np.dtype("u1")
    fields = [Field("x", i4), Field("y", i4), Field("z", i4), Field("intensity", u2)]
    if header.point_format in COLOURS_AT:
        fields.append(Field("", u1, COLOURS_AT[header.point_format] - 14))
        fields += [Field(colour, u2) for colour in ("red", "green", "blue")]
    fields.append(Field("", u1, header.record_size - Row(tuple(fields)).size))
    return Row(tuple(fields))


def _parse(body: memoryview) -> Header:
    if len(body) < HEADER_BYTES or bytes(body[:4]) != b"LASF":
        raise BadRequest(
            f"LAS: the file must begin with b'LASF' and a header of {HEADER_BYTES} bytes; "
            f"it has {len(body)} bytes and begins with {bytes(body[:4])!r}"
        )
    version = (body[24], body[25])
    if version[0] != 1 or version[1] > 4:
        raise BadRequest(f"LAS: version {version[0]}.{version[1]}, known are 1.0 to 1.4")
    header_size, data_at, records, form, record_size, points = struct.unpack_from("<HIIBHI", body, 94)
    least = HEADER_BYTES_1_4 if version[1] == 4 else HEADER_BYTES
    if not least <= header_size <= data_at <= len(body):
        raise BadRequest(
            f"LAS: header of {header_size} bytes (at least {least}) and points from byte {data_at} on "
            f"do not fit a file of {len(body)} bytes"
        )
    if version[1] == 4:
        points = struct.unpack_from("<Q", body, 247)[0] or points
    number = form & 0x3F
    if number >= len(SMALLEST_RECORD) or record_size < SMALLEST_RECORD[number]:
        raise BadRequest(
            f"LAS: point format {number} with records of {record_size} bytes; known are formats 0 to 10 "
            f"with at least {', '.join(map(str, SMALLEST_RECORD))} bytes"
        )
    scale, offset = struct.unpack_from("<3d", body, 131), struct.unpack_from("<3d", body, 155)
    return Header(points, number, form > 0x3F, record_size, data_at, header_size, records, scale, offset)
