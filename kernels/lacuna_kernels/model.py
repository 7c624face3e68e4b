"""Model folders: `model.json` and `model.safetensors`."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lacuna_kernels.errors import GraphError, WeightError
from lacuna_kernels.graph import Graph, Node
from lacuna_kernels.ops import parse_graph

Weights = Mapping[str, Tensor]
MAX_GRAPH_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Model:
    """A valid graph with all of its weights, fp32 on the CPU."""

    graph: Graph
    weights: Weights


def load_model(folder: Path) -> Model:
    """Read and check a model folder.

    Raises GraphError or WeightError, which name the node, the weight, the shapes.
    """
    graph = parse_graph(_read_json(folder / "model.json"))
    path = folder / "model.safetensors"
    if not path.is_file():
        if graph.weight_shapes():
            raise WeightError(f"{path.name} is missing in {_short(folder)!r}; the graph has weights")
        return Model(graph, {})
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightError(f"{path.name} cannot be read: {error}") from error
    return Model(graph, check_weights(graph, weights))


def save_model(model: Model, folder: Path) -> None:
    """Write `model.json` and `model.safetensors` into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    document = model.graph.model_dump(mode="json", exclude_defaults=True)
    (folder / "model.json").write_text(json.dumps(document, indent=1) + "\n")
    shared = torch.contiguous_format  # safetensors takes no two weights that share memory, so each gets its own
    weights = {name: weight.clone(memory_format=shared) for name, weight in model.weights.items()}
    (folder / "model.safetensors").write_bytes(save(weights))  # save_file would leave it to its owner alone to read


def check_weights(graph: Graph, weights: Weights) -> dict[str, Tensor]:
    """Return the weights as fp32, checked: none missing, none left over, right shapes, finite; raises WeightError."""
    wanted = graph.weight_shapes()
    if missing := sorted(wanted.keys() - weights.keys()):
        others = ", ".join(f"{name} {list(wanted[name])}" for name in missing[1:10])
        more = f"; so are {others}{', ...' if len(missing) > 10 else ''}" if others else ""
        raise WeightError(f"weight {missing[0]!r} {list(wanted[missing[0]])} is missing{more}")
    if extra := sorted(weights.keys() - wanted.keys()):
        raise WeightError(f"weight {extra[0]!r} belongs to no node ({len(extra)} in all)")
    for name, shape in wanted.items():
        weight = weights[name]
        if tuple(weight.shape) != shape:
            raise WeightError(f"weight {name!r} has shape {list(weight.shape)}, the graph needs {list(shape)}")
        if not weight.is_floating_point() or weight.element_size() == 1:  # fp8 is nothing without its scale
            raise WeightError(f"weight {name!r} is {weight.dtype}, it must be fp32, fp16, bf16 or fp64")
        if not bool(torch.isfinite(weight).all()):
            raise WeightError(f"weight {name!r} must be finite")
    return {name: weights[name].float() for name in wanted}


def node_weights(weights: Weights, node: Node) -> dict[str, Tensor]:
    """Return the weights of one node, by their names without the node's."""
    prefix = f"{node.name}."
    return {name[len(prefix) :]: weight for name, weight in weights.items() if name.startswith(prefix)}


def random_weights(graph: Graph, seed: int) -> dict[str, Tensor]:
    """Random weights that keep activations near unit scale, for tests and benchmarks: fp32, by full name."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, shape, generator) for name, shape in graph.weight_shapes().items()}


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator)
    if name.endswith(".running_var"):
        return values.abs() * 0.2 + 0.9
    if len(shape) == 1:
        return values * 0.1 + (1.0 if name.endswith(".weight") else 0.0)
    return values * _gain(name, shape)


def _gain(name: str, shape: tuple[int, ...]) -> float:
    if ".factors." in name:
        return math.sqrt(1 / shape[2])
    if len(shape) == 3:  # sparse convolution [k, ci, co]: about a third of the neighbours are there
        return math.sqrt(2 / (shape[1] * max(1.0, shape[0] / 3)))
    return math.sqrt(1 / math.prod(shape[1:]))


def _short(folder: Path) -> str:
    """A model folder by its name and version."""
    return "/".join(folder.parts[-2:])


def _read_json(path: Path) -> object:
    if not path.is_file():
        raise GraphError(f"{path.name} is missing in {_short(path.parent)!r}")
    if path.stat().st_size > MAX_GRAPH_BYTES:
        raise GraphError(f"{path.name} has {path.stat().st_size} bytes, at most {MAX_GRAPH_BYTES} are read")
    try:
        document: object = from_json(path.read_bytes())  # unlike json.loads, it bounds the depth by itself
    except ValueError as error:
        raise GraphError(f"{path.name} is not JSON: {error}") from error
    return document
