"""Tensors in the datatypes of the Open Inference Protocol v2: raw little-endian row-major bytes, or JSON numbers.

FP16 and BF16 exist in binary form only. In JSON, data may be flat or nested; whole numbers must be whole and in range,
and a float that its datatype cannot hold is refused. NaN and infinity of an answer are `null` in JSON.
"""

import math
import warnings
from itertools import chain
from typing import Any

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from torch import Tensor

from lacuna_service.codecs.columns import clip
from lacuna_service.errors import BadRequest

DATATYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
"""Numbers; BYTES is in the protocol too, but no network takes strings."""

NAMES = {dtype: name for name, dtype in DATATYPES.items()}
BINARY_ONLY = ("FP16", "BF16")
JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
"""What JSON may hold for a kind of number, and nothing else: NumPy would take texts, or true for 1."""

CHUNK = 2**15
"""Numbers that are turned into JSON or out of it at once: the event loop waits for a millisecond or two of it, as
neither lets it run meanwhile."""

AXES_LIMIT = 8
SIZE_LIMIT = 2**40


def dtype_of(datatype: object) -> torch.dtype:
    """The torch type of a datatype; raises BadRequest for one that is not known or not numbers."""
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        shown = clip(datatype) if isinstance(datatype, str) else type(datatype).__name__
        raise BadRequest(f"datatype {shown} is not served here; known are {', '.join(DATATYPES)}")
    return DATATYPES[datatype]


def check_shape(name: str, shape: object) -> tuple[int, ...]:
    """A client's shape as a tuple; raises BadRequest unless it is a list of at most 8 sizes of 0 and more."""
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size <= SIZE_LIMIT for size in shape):
        raise BadRequest(f"tensor {clip(name)}: the shape must be a list of whole numbers from 0 to {SIZE_LIMIT}")
    if len(shape) > AXES_LIMIT:
        raise BadRequest(f"tensor {clip(name)}: the shape has {len(shape)} axes, at most {AXES_LIMIT} are taken")
    return tuple(shape)


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> Tensor:
    """A tensor of raw bytes; shares their memory where they are aligned and writable.

    Raises BadRequest, before anything is made, if the bytes are not as many as the shape takes.
    """
    dtype = dtype_of(datatype)
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise BadRequest(
            f"tensor {clip(name)}: {datatype} {list(shape)} takes {expected} bytes, the body holds {len(data)} for it"
        )
    if not expected:
        return torch.zeros(shape, dtype=dtype)
    raw = torch.frombuffer(bytearray(data) if data.readonly else data, dtype=torch.uint8)
    if raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()
    return (raw != 0 if dtype is torch.bool else raw.view(dtype)).reshape(shape)


def to_bytes(tensor: Tensor) -> memoryview:
    """The raw bytes of a CPU tensor, row-major; shares its memory if it is contiguous."""
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: list[Any]) -> Tensor:
    """A tensor of JSON numbers, flat or nested; raises BadRequest if they are of another kind, count or range."""
    dtype = dtype_of(datatype)
    if datatype in BINARY_ONLY:
        raise BadRequest(f"tensor {clip(name)}: {datatype} has no JSON form, send it as binary data")
    flat, size = _flat(name, data), math.prod(shape)
    if len(flat) != size:
        raise BadRequest(f"tensor {clip(name)}: the shape {list(shape)} takes {size} numbers, data holds {len(flat)}")
    target = torch.empty(0, dtype=dtype).numpy().dtype
    out = np.empty(size, target)
    for start in range(0, size, CHUNK):
        out[start : start + CHUNK] = _cast(name, datatype, flat[start : start + CHUNK], target)
    return torch.from_numpy(out.reshape(shape))


def to_json(tensor: Tensor) -> orjson.Fragment:
    """The elements of a CPU tensor, row-major, as a list of JSON; for datatypes that have a JSON form."""
    flat = tensor.contiguous().reshape(-1).numpy()
    chunks = (flat[start : start + CHUNK] for start in range(0, len(flat), CHUNK))
    return orjson.Fragment(
        b"[%b]" % b",".join(orjson.dumps(c, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for c in chunks)
    )


def _flat(name: str, data: list[Any]) -> list[Any]:
    while data and type(data[0]) is list:
        if set(map(type, data)) != {list} or len(set(map(len, data))) > 1:
            raise BadRequest(f"tensor {clip(name)}: the lists of data are not equally long")
        data = list(chain.from_iterable(data))
    return data


def _cast(name: str, datatype: str, values: list[Any], target: np.dtype[Any]) -> NDArray[Any]:
    if not set(map(type, values)) <= JSON_TYPES[target.kind]:
        raise BadRequest(f"tensor {clip(name)}: data must hold {_meant(target.kind)} for {datatype}")
    try:
        with warnings.catch_warnings(action="ignore"):
            out = np.array(values, target)
    except OverflowError:
        low, high = np.iinfo(target).min, np.iinfo(target).max
        raise BadRequest(f"tensor {clip(name)}: data must lie in {low}..{high} for {datatype}") from None
    if target.kind == "f" and not np.isfinite(out).all():
        raise BadRequest(f"tensor {clip(name)}: data holds a number that {datatype} cannot")
    return out


def _meant(kind: str) -> str:
    return {"b": "true and false", "f": "numbers"}.get(kind, "whole numbers")
