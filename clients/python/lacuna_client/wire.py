"""The wire format: tensors to the bytes of an inference request, and the bytes of an answer to tensors.

Open Inference Protocol v2 with its binary tensor extension: a JSON header, then the tensors' bytes in the order of the
header, little-endian and row-major. The HTTP header Inference-Header-Content-Length says where the JSON ends.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_client.errors import ProtocolError

Array = NDArray[Any]
HEADER_LENGTH = "Inference-Header-Content-Length"

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
    **{f"INT{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
    **{f"FP{8 * n}": np.dtype(f"<f{n}") for n in (2, 4, 8)},
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array with the protocol's name of its type, for where NumPy's type does not tell.

    BF16 takes a float array and rounds it; BYTES takes an object array of bytes or str.
    """

    datatype: str
    array: Array

    @classmethod
    def of(cls, value: Array | Tensor) -> Tensor:
        """The tensor that an array stands for. Raises TypeError if the protocol has no such type."""
        if isinstance(value, Tensor):
            return value
        array = np.asarray(value)
        if array.dtype.kind in "OSU":
            return cls("BYTES", array)
        if array.dtype.name == "bfloat16":
            return cls("BF16", array)
        for name, dtype in DTYPES.items():
            if dtype == array.dtype.newbyteorder("<"):
                return cls(name, array)
        raise TypeError(f"arrays of {array.dtype} cannot be sent; known are {', '.join(DTYPES)}, BF16, BYTES")

    def to_bytes(self) -> bytes:
        """The elements, row-major and little-endian."""
        if self.datatype == "BYTES":
            return b"".join(len(item).to_bytes(4, "little") + item for item in strings(self.array))
        if self.datatype == "BF16":
            return round_to_bf16(self.array).tobytes()
        if self.datatype not in DTYPES:
            raise TypeError(f"datatype {self.datatype!r} is not known; known are {', '.join(DTYPES)}, BF16, BYTES")
        return self.array.astype(DTYPES[self.datatype], copy=False).tobytes()

    def to_list(self) -> list[Any]:
        """The elements as JSON has them, flat. Raises TypeError for types that have only a binary form."""
        if self.datatype in {"FP16", "BF16"}:
            raise TypeError(f"{self.datatype} has no JSON form; send it as binary")
        if self.datatype == "BYTES":
            return [item.decode("utf-8") for item in strings(self.array)]
        return self.array.ravel().tolist()


@dataclass(frozen=True, slots=True, eq=False)
class InferResult(Mapping[str, Array]):
    """An answer: `result["labels"]` is an output's array. BF16 comes as float32, BYTES as an object array of bytes."""

    model_name: str
    model_version: str | None
    id: str | None
    outputs: dict[str, Array]
    parameters: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)


def encode_request(
    inputs: Mapping[str, Array | Tensor],
    outputs: Sequence[str] | None,
    *,
    binary: bool = True,
    request_id: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[bytes, dict[str, str]]:
    """The body of an inference request and its HTTP headers; no outputs named means all of them."""
    tensors = {name: Tensor.of(value) for name, value in inputs.items()}
    chunks = [tensor.to_bytes() for tensor in tensors.values()] if binary else []
    header: dict[str, Any] = {"parameters": {**(parameters or {}), "binary_data_output": binary}, "inputs": []}
    for index, (name, tensor) in enumerate(tensors.items()):
        entry: dict[str, Any] = {"name": name, "shape": list(tensor.array.shape), "datatype": tensor.datatype}
        entry |= {"parameters": {"binary_data_size": len(chunks[index])}} if binary else {"data": tensor.to_list()}
        header["inputs"].append(entry)
    if outputs is not None:
        header["outputs"] = [{"name": name, "parameters": {"binary_data": binary}} for name in outputs]
    if request_id is not None:
        header["id"] = request_id
    start = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    if not binary:
        return start, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(start))}
    return b"".join([start, *chunks]), headers


def decode_response(body: bytes, header_length: str | None) -> InferResult:
    """Read an answer. Raises ProtocolError if it is not one."""
    try:
        end = len(body) if header_length is None else int(header_length)
        if not 0 <= end <= len(body):
            raise ProtocolError(f"{HEADER_LENGTH} is {end}, the body has {len(body)} bytes")
        header = json.loads(body[:end])
        arrays = decode_outputs(header.get("outputs", []), memoryview(body)[end:])
        return InferResult(
            model_name=header["model_name"],
            model_version=header.get("model_version"),
            id=header.get("id"),
            outputs=arrays,
            parameters=header.get("parameters", {}),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ProtocolError(f"the answer is not an inference response: {error!r}") from error


def decode_outputs(entries: list[dict[str, Any]], data: memoryview) -> dict[str, Array]:
    """Cut the binary part into arrays, in the order of the header; outputs in JSON form have their data there."""
    arrays: dict[str, Array] = {}
    start = 0
    for entry in entries:
        size = entry.get("parameters", {}).get("binary_data_size")
        if size is None:
            arrays[entry["name"]] = from_list(entry["datatype"], entry["shape"], entry["data"])
            continue
        if not 0 <= size <= len(data) - start:
            raise ProtocolError(f"output {entry['name']}: {size} bytes declared, {len(data) - start} left")
        arrays[entry["name"]] = from_bytes(entry["datatype"], entry["shape"], data[start : start + size])
        start += size
    if start != len(data):
        raise ProtocolError(f"{len(data) - start} bytes follow the last output")
    return arrays


def from_bytes(datatype: str, shape: Sequence[int], data: memoryview) -> Array:
    """An array of a declared type and shape; it is writable and shares nothing with the body."""
    if datatype == "BYTES":
        return objects(list(split_strings(data)), shape)
    if datatype == "BF16":
        widened = np.frombuffer(data, "<u2").astype("<u4") << 16
        return widened.view("<f4").reshape(shape)
    if datatype not in DTYPES:
        raise ProtocolError(f"datatype {datatype!r} is not known")
    return np.frombuffer(data, DTYPES[datatype]).reshape(shape).copy()


def from_list(datatype: str, shape: Sequence[int], data: list[Any]) -> Array:
    """An array from its JSON form."""
    if datatype == "BYTES":
        return objects([item.encode() for item in data], shape)
    if datatype not in DTYPES:
        raise ProtocolError(f"datatype {datatype!r} has no JSON form")
    return np.array(data, DTYPES[datatype]).reshape(shape)


def round_to_bf16(array: Array) -> NDArray[np.uint16]:
    """The upper halves of float32 numbers, rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.dtype("<f4")).view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(bits.view("<f4")), (bits >> 16) | 0x40, rounded).astype("<u2")


def strings(array: Array) -> list[bytes]:
    """The elements of a BYTES tensor."""
    return [item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel().tolist()]


def split_strings(data: memoryview) -> Iterator[bytes]:
    """Elements that each follow their length, four bytes."""
    start = 0
    while start < len(data):
        size = int.from_bytes(data[start : start + 4], "little")
        if start + 4 + size > len(data):
            raise ProtocolError(f"a BYTES element of {size} bytes at {start} does not fit in {len(data)}")
        yield bytes(data[start + 4 : start + 4 + size])
        start += 4 + size


def objects(items: list[bytes], shape: Sequence[int]) -> Array:
    """An object array: NumPy's own byte strings would lose trailing zeros."""
    if len(items) != math.prod(shape):
        raise ProtocolError(f"{len(items)} elements do not fill the shape {list(shape)}")
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)
