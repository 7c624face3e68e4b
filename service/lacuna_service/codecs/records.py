"""Points as rows of typed fields: views into binary data, and parsing of text."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_service.codecs.columns import Ask, Fields, clip
from lacuna_service.errors import BadRequest, TooLarge

HEADER_LIMIT_BYTES = 64 * 1024
FIELDS_LIMIT = 1024
ROW_LIMIT_BYTES = 64 * 1024
BLANK_LIMIT = 10_000
UNPACKED_LIMIT_BYTES_PER_POINT = 128
"""Compressed data may unpack to this much for every point of the limit, and no more."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a row: `count` values of one type; only single values have a use as a column."""

    name: str
    dtype: np.dtype[Any]
    count: int = 1

    @property
    def size(self) -> int:
        """Bytes in a row."""
        return self.dtype.itemsize * self.count


@dataclass(frozen=True, slots=True)
class Row:
    """The layout of one point."""

    fields: tuple[Field, ...]

    @property
    def size(self) -> int:
        """Bytes of one point in binary data."""
        return sum(field.size for field in self.fields)

    @property
    def values(self) -> int:
        """Numbers of one point in a text."""
        return sum(field.count for field in self.fields)

    def views(self, data: memoryview, rows: int) -> Fields:
        """Fields of `rows` points that follow each other from the start of `data`."""
        return self._views(data, rows, offsets=self._starts(1), stride=self.size)

    def column_views(self, data: memoryview, rows: int) -> Fields:
        """Fields of `rows` points stored field after field (structure of arrays)."""
        return self._views(data, rows, offsets=self._starts(rows), stride=None)

    def parse(self, lines: Iterator[bytes], rows: int, kind: str) -> Fields:
        """Fields of the next `rows` lines of text. Raises BadRequest at what is no number or does not fit its type."""
        table = _numbers(lines, rows, self.values, kind)
        starts = np.cumsum([0, *(field.count for field in self.fields)])
        fields: Fields = {}
        for field, at in zip(self.fields, starts, strict=False):
            if field.count == 1 and field.name not in fields:
                fields[field.name] = _as_declared(table[:, at], field, kind)
        return fields

    def _starts(self, rows: int) -> list[int]:
        starts = [0]
        for field in self.fields:
            starts.append(starts[-1] + field.size * rows)
        return starts

    def _views(self, data: memoryview, rows: int, offsets: list[int], stride: int | None) -> Fields:
        fields: Fields = {}
        for field, offset in zip(self.fields, offsets, strict=False):
            if field.count == 1 and field.name and field.name not in fields:
                step = (stride or field.size,)
                fields[field.name] = (
                    np.ndarray((rows,), field.dtype, data, offset, step) if rows else np.empty(0, field.dtype)
                )
        return fields


def check_unpacked(size: int, ask: Ask) -> None:
    """Raise TooLarge for what would unpack to more than the limit of points may take."""
    limit = ask.limit_points * UNPACKED_LIMIT_BYTES_PER_POINT
    if size > limit:
        raise TooLarge(
            f"the compressed points unpack to {size} bytes, the limit is {limit} "
            f"({UNPACKED_LIMIT_BYTES_PER_POINT} for each of {ask.limit_points} points); leave unused fields out"
        )


def whole(text: str, what: str) -> int:
    """A count out of a header: at most 15 digits and nothing else."""
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise BadRequest(f"{what} must be a whole number from 0 to 999999999999999, got {clip(text)}")
    return int(text)


def text_lines(body: memoryview) -> Iterator[bytes]:
    """The lines of a text that hold something, each of bounded length."""
    stream = io.BytesIO(body)
    blank = 0
    while line := stream.readline(ROW_LIMIT_BYTES + 1):
        if len(line) > ROW_LIMIT_BYTES:
            raise BadRequest(f"a line of the file is longer than {ROW_LIMIT_BYTES} bytes")
        if not line.isspace():
            yield line
            continue
        blank += 1
        if blank > BLANK_LIMIT:
            raise BadRequest(f"the file has more than {BLANK_LIMIT} blank lines")


def _numbers(lines: Iterator[bytes], rows: int, columns: int, kind: str) -> NDArray[np.float64]:
    lines = islice(lines, rows)
    first = next(lines, None)
    if first is None:
        return _all_of(np.empty((0, columns)), rows, kind)
    # One field per column makes numpy insist on that many in every line.
    strict = np.dtype([(f"f{at}", np.float64) for at in range(columns)])
    try:
        table = np.loadtxt(chain([first], lines), strict, comments=None, encoding="latin-1", ndmin=1)
    except ValueError as error:
        raise BadRequest(
            f"{kind}: {columns} numbers a line are declared, but: {clip(str(error).partition(';')[0])[1:-1]}"
        ) from None
    return _all_of(table.view(np.float64).reshape(len(table), columns), rows, kind)


def _all_of(table: NDArray[np.float64], rows: int, kind: str) -> NDArray[np.float64]:
    if len(table) != rows:
        raise BadRequest(f"{kind}: {rows} points are declared, but the file ends after {len(table)}")
    return table


def _as_declared(values: NDArray[np.float64], field: Field, kind: str) -> NDArray[Any]:
    if field.dtype.kind == "f":
        return values
    limits = np.iinfo(field.dtype)
    wrong = ~((values >= limits.min) & (values <= limits.max))
    if wrong.any():
        raise BadRequest(
            f"{kind}: {clip(field.name)} holds {values[wrong][0]:g}, but {field.dtype.name} "
            f"goes from {limits.min} to {limits.max}"
        )
    largest = float(limits.max)
    if largest > limits.max:  # float64 cannot tell the largest 64-bit number from the next, which would wrap
        values = np.minimum(values, np.nextafter(largest, 0))
    return values.astype(field.dtype)
