"""Tensors in the datatypes of the Open Inference Protocol v2: raw little-endian row-major bytes, or JSON numbers.

FP16 and BF16 exist in binary form only. In JSON, data may be flat or nested; whole numbers must be whole and in range,
and a float that its datatype cannot hold is refused. NaN and infinity of an answer are `null` in JSON.
"""

import math
import warnings
from typing import Any

import numpy as np
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


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: object) -> Tensor:
    """A tensor of JSON numbers, flat or nested; raises BadRequest if they are of another kind, count or range."""
    dtype = dtype_of(datatype)
    if datatype in BINARY_ONLY:
        raise BadRequest(f"tensor {clip(name)}: {datatype} has no JSON form, send it as binary data")
    values = _array(name, data)
    if values.size != math.prod(shape):
        raise BadRequest(
            f"tensor {clip(name)}: the shape {list(shape)} takes {math.prod(shape)} numbers, "
            f"data holds {values.size if values.ndim == 1 else list(values.shape)}"
        )
    return torch.from_numpy(_cast(name, datatype, values, dtype).reshape(shape))


def to_json(tensor: Tensor) -> Any:
    """The elements of a CPU tensor, row-major, as orjson writes them; for datatypes that have a JSON form."""
    return tensor.contiguous().reshape(-1).numpy()


def _array(name: str, data: object) -> NDArray[Any]:
    if not isinstance(data, list):
        raise BadRequest(f"tensor {clip(name)}: data must be a list, got {type(data).__name__}")
    try:
        return np.asarray(data)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"tensor {clip(name)}: the lists of data are not equally long") from error


def _cast(name: str, datatype: str, values: NDArray[Any], dtype: torch.dtype) -> NDArray[Any]:
    target = torch.empty(0, dtype=dtype).numpy().dtype
    kinds = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}[target.kind]
    if not values.size:
        return values.astype(target)
    if values.dtype.kind not in kinds:
        raise BadRequest(f"tensor {clip(name)}: data must hold {_meant(kinds)} for {datatype}")
    if target.kind in "iu":
        low, high = int(np.iinfo(target).min), int(np.iinfo(target).max)
        if int(values.min()) < low or int(values.max()) > high:
            raise BadRequest(f"tensor {clip(name)}: data must lie in {low}..{high} for {datatype}")
    with warnings.catch_warnings(action="ignore"):
        out = np.ascontiguousarray(values, target)
    if target.kind == "f" and not np.isfinite(out).all():
        raise BadRequest(f"tensor {clip(name)}: data holds a number that {datatype} cannot")
    return out


def _meant(kinds: str) -> str:
    return {"b": "true and false", "iu": "whole numbers"}.get(kinds, "numbers")
