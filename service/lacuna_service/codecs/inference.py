"""Inference requests and answers of the Open Inference Protocol v2, JSON with or without binary tensor data.

A body is a JSON header, then the binary tensors in the order of the inputs. `Inference-Header-Content-Length` says
where the header ends: without it all is JSON, and 0 says that the body is the raw data of the model's only input.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from torch import Tensor

from lacuna_service.codecs.columns import clip
from lacuna_service.codecs.tensors import NAMES, check_shape, from_bytes, from_json, to_bytes, to_json
from lacuna_service.errors import BadRequest, TooLarge

JSON_LIMIT_BYTES = 16 * 2**20
"""Parsed JSON takes some ten times its length in memory, and nothing else runs while it is parsed: about a quarter of
a second for this much. Larger tensors have the binary form."""

BRACKETS_LIMIT = 2**18
"""Lists and objects in one JSON: a million empty ones would take seconds. Flat data needs one a tensor."""

TENSORS_LIMIT = 256
ID_LIMIT = 256


@dataclass(frozen=True, slots=True)
class WireTensor:
    """An input as it was sent: `data` is raw bytes, or decoded JSON; convert it when its datatype is known to fit."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview | list[Any]

    def tensor(self) -> Tensor:
        """Convert to a CPU tensor; raises BadRequest."""
        if isinstance(self.data, memoryview):
            return from_bytes(self.name, self.datatype, self.shape, self.data)
        return from_json(self.name, self.datatype, self.shape, self.data)


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request as it was sent.

    raw             the whole body, if it is the data of the only input, and `inputs` is empty
    outputs         names wanted, and whether in binary form; None for all
    binary_default  whether outputs are binary where nothing else is said
    """

    inputs: tuple[WireTensor, ...] = ()
    raw: memoryview | None = None
    id: str | None = None
    outputs: tuple[tuple[str, bool], ...] | None = None
    binary_default: bool = False
    timeout_s: float | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """A body, and the length of its JSON header if binary data follows."""

    body: bytes
    header_length: int | None


def decode_request(body: bytes | bytearray | memoryview, header_length: str | None) -> InferRequest:
    """Read a body and the value of its `Inference-Header-Content-Length`; raises BadRequest or TooLarge."""
    end = header_end(header_length, len(body))
    data = memoryview(body)
    if end == 0 and header_length is not None:
        return InferRequest(raw=data, binary_default=True)
    if end > JSON_LIMIT_BYTES:
        raise TooLarge(f"the JSON has {end} bytes, at most {JSON_LIMIT_BYTES} are read; send tensors as binary data")
    text = bytes(data[:end])
    brackets = text.count(b"[") + text.count(b"{")
    if brackets > BRACKETS_LIMIT:
        raise TooLarge(
            f"the JSON has {brackets} lists and objects, at most {BRACKETS_LIMIT} are read; send data flat, or binary"
        )
    header = _record(_parse(text), "the request")
    parameters = _parameters(header, "the request")
    binary_default = _flag(parameters, "binary_data_output", default=False)
    return InferRequest(
        inputs=_inputs(header, data[end:]),
        id=_id(header),
        outputs=_outputs(header, binary_default=binary_default),
        binary_default=binary_default,
        timeout_s=_whole(parameters, "timeout") / 1e6 or None,
        priority=_whole(parameters, "priority"),
    )


def header_end(header_length: str | None, body_length: int) -> int:
    """Bytes of JSON at the start of a body, by the value of the header that tells; raises BadRequest."""
    if header_length is None:
        return body_length
    text = header_length.strip()
    if not (text.isascii() and text.isdigit() and len(text) < 16) or int(text) > body_length:
        raise BadRequest(
            f"Inference-Header-Content-Length must be a whole number from 0 to the body's {body_length} bytes "
            f"(after decompression), got {clip(header_length)}"
        )
    return int(text)


def encode_answer(
    model: str,
    version: str,
    request_id: str | None,
    outputs: Mapping[str, tuple[Tensor, bool]],
    parameters: Mapping[str, float] | None = None,
) -> InferAnswer:
    """Write an answer; `outputs` holds CPU tensors in order, each with whether it is to be binary."""
    header: dict[str, Any] = {"model_name": model, "model_version": version}
    if request_id is not None:
        header["id"] = request_id
    if parameters:
        header["parameters"] = parameters
    chunks: list[memoryview] = []
    header["outputs"] = [
        _output(name, tensor, chunks if binary else None) for name, (tensor, binary) in outputs.items()
    ]
    text = orjson.dumps(header)
    if not any(binary for _, binary in outputs.values()):
        return InferAnswer(text, None)
    return InferAnswer(b"".join([text, *chunks]), len(text))


def _output(name: str, tensor: Tensor, chunks: list[memoryview] | None) -> dict[str, Any]:
    record = {"name": name, "datatype": NAMES[tensor.dtype], "shape": list(tensor.shape)}
    if chunks is None:
        return record | {"data": to_json(tensor)}
    chunks.append(to_bytes(tensor))
    return record | {"parameters": {"binary_data_size": len(chunks[-1])}}


def _parse(data: bytes) -> object:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the request is not JSON: {error}") from error


def _record(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be a JSON object, got {type(value).__name__}")
    return value


def _records(header: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = header.get(key)
    if not isinstance(entries, list) or not entries or len(entries) > TENSORS_LIMIT:
        raise BadRequest(f"{key!r} must be a list of 1 to {TENSORS_LIMIT} tensors")
    return [_record(entry, f"an entry of {key!r}") for entry in entries]


def _parameters(record: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = _record(record.get("parameters", {}), f"parameters of {what}")
    for name in parameters:
        if name.startswith("triton_"):
            raise BadRequest(f"parameter {clip(name)}: names that start with 'triton_' are reserved")
    return parameters


def _name(record: dict[str, Any], key: str) -> str:
    name = record.get("name")
    if not isinstance(name, str) or not name:
        raise BadRequest(f"every entry of {key!r} needs a name")
    return name


def _id(header: dict[str, Any]) -> str | None:
    given = header.get("id")
    if given is not None and (not isinstance(given, str) or len(given) > ID_LIMIT):
        raise BadRequest(f"'id' must be a string of at most {ID_LIMIT} characters")
    return given


def _flag(parameters: dict[str, Any], key: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise BadRequest(f"parameter {key!r} must be true or false")
    return value


def _whole(parameters: dict[str, Any], key: str) -> int:
    value = parameters.get(key, 0)
    if type(value) is not int or not 0 <= value < 2**63:
        raise BadRequest(f"parameter {key!r} must be a whole number of 0 and more")
    return value


def _inputs(header: dict[str, Any], rest: memoryview) -> tuple[WireTensor, ...]:
    inputs: list[WireTensor] = []
    for record in _records(header, "inputs"):
        tensor, rest = _input(record, rest)
        inputs.append(tensor)
    if len(rest):
        raise BadRequest(f"{len(rest)} bytes follow the binary data of the last input")
    if len({tensor.name for tensor in inputs}) < len(inputs):
        raise BadRequest(f"every input may be given once, got {clip(', '.join(tensor.name for tensor in inputs))}")
    return tuple(inputs)


def _input(record: dict[str, Any], rest: memoryview) -> tuple[WireTensor, memoryview]:
    name = _name(record, "inputs")
    datatype, shape = record.get("datatype"), check_shape(name, record.get("shape"))
    if not isinstance(datatype, str):
        raise BadRequest(f"input {clip(name)} needs a datatype, such as 'FP32'")
    parameters = _parameters(record, f"input {clip(name)}")
    if any(key.startswith("shared_memory") for key in parameters):
        raise BadRequest(f"input {clip(name)}: shared memory is not served here, send the data")
    if "binary_data_size" not in parameters:
        data = record.get("data")
        if not isinstance(data, list):
            raise BadRequest(f"input {clip(name)} needs 'data' as a list, or the parameter 'binary_data_size'")
        return WireTensor(name, datatype, shape, data), rest
    if "data" in record:
        raise BadRequest(f"input {clip(name)} has both 'data' and 'binary_data_size'")
    size = _whole(parameters, "binary_data_size")
    if size > len(rest):
        raise BadRequest(f"input {clip(name)}: binary_data_size is {size}, but only {len(rest)} bytes are left")
    return WireTensor(name, datatype, shape, rest[:size]), rest[size:]


def _outputs(header: dict[str, Any], *, binary_default: bool) -> tuple[tuple[str, bool], ...] | None:
    if not header.get("outputs"):
        return None
    outputs: dict[str, bool] = {}
    for record in _records(header, "outputs"):
        name = _name(record, "outputs")
        parameters = _parameters(record, f"output {clip(name)}")
        if parameters.get("classification") or any(key.startswith("shared_memory") for key in parameters):
            raise BadRequest(f"output {clip(name)}: classification and shared memory are not served here")
        if name in outputs:
            raise BadRequest(f"output {clip(name)} may be asked for once")
        outputs[name] = _flag(parameters, "binary_data", default=binary_default)
    return tuple(outputs.items())
