"""What a model looks like to a client: metadata and configuration, as Triton words them."""

import json
from typing import Any

from lacuna_service.engine import ServedModel
from lacuna_service.signature import Signature, TensorSpec

PLATFORM = "lacuna"


def model_metadata(model: ServedModel, versions: list[str]) -> dict[str, Any]:
    """Names, datatypes and shapes; -1 stands for rows (or points) of the request."""
    signature = Signature(model.graph)
    return {
        "name": model.name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.outputs],
    }


def model_config(model: ServedModel) -> dict[str, Any]:
    """The model configuration extension: dims are without the rows where `max_batch_size` is above 0."""
    signature, batched = Signature(model.graph), model.max_batch_size > 0
    config: dict[str, Any] = {
        "name": model.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"all": {}},
        "max_batch_size": model.max_batch_size,
        "input": [_configured(spec, batched) | _optional(spec) for spec in signature.inputs],
        "output": [_configured(spec, batched) for spec in signature.outputs],
        "parameters": {key: {"string_value": value} for key, value in _parameters(model).items()},
    }
    if batched:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": round(model.config.max_delay_ms * 1000)}
    return config


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": [-1, *spec.sizes]}


def _configured(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    named = {"name": spec.name, "data_type": f"TYPE_{spec.datatype}"}
    if batched and not spec.sizes:
        return named | {"dims": [1], "reshape": {"shape": []}}  # how Triton says: one number a row
    return named | {"dims": [*([] if batched else [-1]), *spec.sizes]}


def _optional(spec: TensorSpec) -> dict[str, Any]:
    return {"optional": True} if spec.optional else {}


def _parameters(model: ServedModel) -> dict[str, str]:
    """What the protocol has no field for: precision, limits, columns of clouds, names of classes."""
    found = {"precision": str(model.config.precision), "max_batch_cost": str(model.config.max_batch_cost)}
    for name, kind in model.graph.input_value_types.items():
        if kind.columns:
            found[f"{name}.columns"] = json.dumps(kind.columns)
    for name, output in model.graph.outputs.items():
        if output.classes is not None:
            found[f"{name}.classes"] = json.dumps(output.classes)
    return found
