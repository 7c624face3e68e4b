"""NumPy's .npy: a two-dimensional float array by position, or a structured array by name. Never pickled objects.

The header is a Python literal. It is parsed as one, and only plain numbers of known types are accepted out of it, so
that neither `numpy.load` nor a dtype of the client's making runs here.
"""

import ast
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_service.codecs.columns import Ask, check_points, clip, select, select_positional
from lacuna_service.codecs.records import FIELDS_LIMIT, Field, Row
from lacuna_service.errors import BadRequest

MAGIC = b"\x93NUMPY"
HEADER_LIMIT_BYTES = 16 * 1024
SIZE_LIMIT = 10**15
NUMBER = re.compile(r"[<>|=]?(f[248]|[iu][1248])")


def read(body: memoryview, ask: Ask) -> NDArray[np.float32]:
    """Read an array [n, 3 and more] of float16, 32 or 64, or a structured [n]; versions 1 to 3, C or Fortran order."""
    header, data = _split(body)
    shape = header["shape"]
    if isinstance(header["descr"], str):
        return _read_plain(data, _number(header["descr"]), shape, bool(header["fortran_order"]), ask)
    row = Row(_fields(header["descr"]))
    if len(shape) != 1:
        raise BadRequest(f"NPY: a structured array of points has one dimension, this one has the shape {shape}")
    _check_size(data, shape[0] * row.size, f"{shape[0]} rows of {row.size} bytes")
    check_points(shape[0], ask)
    return select(row.views(data, shape[0]), ask)


def _read_plain(
    data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool, ask: Ask
) -> NDArray[np.float32]:
    if dtype.kind != "f" or len(shape) != 2 or shape[1] < 3:
        raise BadRequest(
            f"NPY: a cloud is an array of float32 or float64 [points, 3 or more columns], "
            f"this one is {dtype.name} of the shape {shape}"
        )
    _check_size(data, shape[0] * shape[1] * dtype.itemsize, f"shape {shape} of {dtype.name}")
    if shape[1] > FIELDS_LIMIT:
        raise BadRequest(f"NPY: {shape[1]} columns, the limit is {FIELDS_LIMIT}")
    check_points(shape[0], ask)
    rows = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return select_positional(rows, ask)


def _split(body: memoryview) -> tuple[dict[str, Any], memoryview]:
    start = bytes(body[:12])
    if not start.startswith(MAGIC) or len(start) < 12 or start[6] not in (1, 2, 3):
        raise BadRequest(f"NPY: the file must begin with {MAGIC!r} and a version from 1 to 3, got {start[:8]!r}")
    begin, length = (10, start[8:10]) if start[6] == 1 else (12, start[8:12])
    end = begin + int.from_bytes(length, "little")
    if end > min(HEADER_LIMIT_BYTES, len(body)):
        raise BadRequest(
            f"NPY: the header ends at byte {end}, but the file has {len(body)} bytes "
            f"and a header at most {HEADER_LIMIT_BYTES}"
        )
    return _literal(bytes(body[begin:end]).decode("latin-1")), body[end:]


def _literal(text: str) -> dict[str, Any]:
    try:
        header = None if "\\" in text else ast.literal_eval(text.strip(" \n\0"))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        header = None
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise BadRequest(f"NPY: the header must be a literal of descr, fortran_order and shape, got {clip(text)}")
    shape = header["shape"]
    if not isinstance(shape, tuple) or not all(type(size) is int and 0 <= size < SIZE_LIMIT for size in shape):
        raise BadRequest(f"NPY: the shape must be whole numbers from 0 to {SIZE_LIMIT - 1}, got {clip(text)}")
    if not isinstance(header["descr"], str | list):
        raise BadRequest(f"NPY: the type must be a string or a list of fields, got {clip(text)}")
    return header


def _number(text: object) -> np.dtype[Any]:
    if not isinstance(text, str) or not NUMBER.fullmatch(text):
        raise BadRequest(
            f"NPY: the type {clip(text if isinstance(text, str) else type(text).__name__)} is not read here; "
            f"store numbers, such as '<f4' (never Python objects)"
        )
    return np.dtype(text)


def _fields(descr: list[Any]) -> tuple[Field, ...]:
    if not 1 <= len(descr) <= FIELDS_LIMIT:
        raise BadRequest(f"NPY: a structured array has 1 to {FIELDS_LIMIT} fields, this one has {len(descr)}")
    fields: list[Field] = []
    for entry in descr:
        if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)):
            raise BadRequest(f"NPY: field {len(fields)} is no pair of a name and a number type, such as ('x', '<f4')")
        padding = entry[0] == "" and isinstance(entry[1], str) and re.fullmatch(r"\|V\d{1,4}", entry[1])
        fields.append(Field(entry[0], np.dtype(np.uint8), int(entry[1][2:])) if padding else _field(*entry))
    return tuple(fields)


def _field(name: str, kind: object) -> Field:
    return Field(name, _number(kind))


def _check_size(data: memoryview, expected: int, what: str) -> None:
    if len(data) != expected:
        raise BadRequest(f"NPY: {clip(what)[1:-1]} takes {expected} bytes, but {len(data)} follow the header")
