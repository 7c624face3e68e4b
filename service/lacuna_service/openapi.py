"""What `/docs` says of the two paths that bypass the framework."""

from typing import Any

TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "example": "FP32"},
        "data": {"type": "array", "items": {}, "description": "flat or nested, row-major"},
        "parameters": {"type": "object", "description": "binary_data_size, if the data follows the JSON"},
    },
}
INFER_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "inputs": {"type": "array", "items": TENSOR},
        "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
        "parameters": {"type": "object", "description": "binary_data_output, timeout (microseconds), priority"},
    },
}
ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
BINARY = {"schema": {"type": "string", "format": "binary"}}
STATUSES = {
    "400": "malformed, or not what the model takes",
    "404": "no such model or version",
    "413": "above a stated limit",
    "415": "a format or encoding that is not read",
    "503": "queue full, loading or stopping; see Retry-After",
    "504": "not answered within the time allowed",
}


def inference_paths() -> dict[str, Any]:
    """The `paths` of the inference endpoints."""
    paths = {}
    for place in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        paths[f"{place}/infer"] = {"post": _infer(place)}
        paths[f"{place}/pointcloud"] = {"post": _pointcloud(place)}
    return paths


def _infer(place: str) -> dict[str, Any]:
    header = _parameter(
        "Inference-Header-Content-Length", "header", "bytes of JSON before the binary tensors", "integer"
    )
    energy = _parameter("energy", "query", "1: answer with parameters.energy_joules, where there is a meter")
    content = {"application/json": {"schema": INFER_REQUEST}, "application/octet-stream": BINARY}
    answers = {"application/json": {"schema": {"type": "object"}}, "application/octet-stream": BINARY}
    return _operation("Tensors in, tensors out", [*_placed(place), header, energy], content, answers)


def _pointcloud(place: str) -> dict[str, Any]:
    query = [
        _parameter("format", "query", "bin, pcd, ply, npy, las or laz; wins over the Content-Type"),
        _parameter("columns", "query", "float32 columns of a .bin, if not the model's", "integer"),
    ]
    answers = {
        "application/json": {"schema": {"type": "object"}},
        "application/x-npy": BINARY,
        "application/x-ply": BINARY,
    }
    content = {"application/octet-stream": BINARY}
    return _operation(
        "A point-cloud file in, the label of every point out", [*_placed(place), *query], content, answers
    )


def _operation(
    summary: str, parameters: list[dict[str, Any]], content: dict[str, Any], answers: dict[str, Any]
) -> dict[str, Any]:
    failures = {
        status: {"description": meaning, "content": {"application/json": {"schema": ERROR}}}
        for status, meaning in STATUSES.items()
    }
    return {
        "tags": ["inference"],
        "summary": summary,
        "parameters": parameters,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": "the answer", "content": answers}, **failures},
    }


def _placed(place: str) -> list[dict[str, Any]]:
    names = [name for name in ("model", "version") if f"{{{name}}}" in place]
    return [_parameter(name, "path", f"the {name}") | {"required": True} for name in names]


def _parameter(name: str, where: str, meaning: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "in": where, "description": meaning, "schema": {"type": kind}}
