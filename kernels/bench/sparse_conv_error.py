"""How far a network's numbers are from exact ones, on a batch.

The graph without its argmax, so that scores come out, is computed as it stands by the reference ops in float64. Points
are the same fp32, and so are the voxels they fall into; weights are rounded to the elements' type first, for both. So
what counts as error is all that a device rounds by itself: means of voxels, weights into which it folded batch norms,
sums, and every value between layers. tf32 keeps its elements in fp32.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lacuna_kernels import Backend, Batch, Graph, Options, Precision, Value, Weights, cost, parse_graph
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.model import node_weights
from lacuna_kernels.ops.context import Context
from lacuna_kernels.ops.voxelize import Voxelize


def rounded(weights: Weights, precision: Precision) -> dict[str, Tensor]:
    """Weights, fp32, that the elements of a precision can hold."""
    return {name: weight.to(DTYPES[precision]).float() for name, weight in weights.items()}


def with_scores(graph: Graph) -> Graph:
    """The graph up to what labels are taken from; one that has no labels as it is."""
    document = graph.model_dump(mode="json", exclude_defaults=True)
    scores = {node.name: node.inputs[0] for node in graph.nodes if node.op == "argmax"}
    nodes = [node for node in document["nodes"] if node["name"] not in scores]
    return parse_graph(document | {"nodes": nodes, "outputs": {scores.get(name, name): {} for name in graph.outputs}})


def exact(graph: Graph, weights: Weights, batch: Batch, device: str) -> dict[str, Value]:
    """The outputs by the reference ops in float64, computed on a device of torch; on the CPU."""
    context, values = Context(graph.types), {name: _moved(value, device) for name, value in batch.items()}
    last_use = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    with torch.inference_mode():
        for index, node in enumerate(graph.nodes):
            inputs = [values[name] for name in node.inputs]
            own = {name: weight.to(device).double() for name, weight in node_weights(weights, node).items()}
            made = node.reference(inputs, own, context)
            values[node.name] = means(node, inputs[0], context) if isinstance(node, Voxelize) else made
            for name in node.inputs:
                if last_use[name] == index and name not in graph.outputs:
                    values.pop(name, None)
    return {name: _moved(values[name], "cpu") for name in graph.outputs}


def means(grid: Voxelize, cloud: Value, context: Context) -> Value:
    """What a grid's voxels hold, in float64, after its points found their voxels in fp32."""
    if grid.reduce != "mean":
        raise NotImplementedError(f"{grid.name}: {grid.reduce}")
    sites, voxel = context.sites[grid.name], context.placements[grid.name].voxel_of_point
    kept, points = voxel >= 0, cloud.data.double()
    sums = points.new_zeros(len(sites.data), points.shape[1]).index_add(0, voxel[kept], points[kept])
    return replace(sites, data=sums / torch.bincount(voxel[kept], minlength=len(sums))[:, None])


def _moved(value: Value, device: str) -> Value:
    offsets, coordinates = (None if part is None else part.to(device) for part in (value.offsets, value.coordinates))
    return Value(value.data.to(device), offsets, coordinates)


def found(backend: Backend, graph: Graph, weights: Weights, batch: Batch, precision: Precision) -> dict[str, Value]:
    """The outputs as a backend computes them."""
    program = backend.compile(graph, weights, Options(precision, max_cost=cost(batch), initial_cost=cost(batch)))
    try:
        return program.submit(batch).result().values
    finally:
        program.close()


def error(values: Mapping[str, Value], expected: Mapping[str, Value]) -> float:
    """The largest of the outputs' relative L2 errors."""
    return float(f"{max(relative_l2(values[name], expected[name]) for name in expected):.3g}")


def relative_l2(value: Value, expected: Value) -> float:
    """The length of the difference by that of what is expected; sites in whatever order, RuntimeError if others."""
    x, y = value.data.cpu().double(), expected.data.double()
    if value.coordinates is not None and expected.coordinates is not None:
        (sites, x), (others, y) = in_order(value.coordinates.cpu(), x), in_order(expected.coordinates, y)
        if not torch.equal(sites, others):
            raise RuntimeError(f"{len(sites)} sites for {len(others)}, or other ones")
    return float((x - y).norm() / y.norm())


def in_order(coordinates: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted by item, x, y, z."""
    sites, order = torch.unique(coordinates, dim=0, return_inverse=True)
    sorted_features = torch.empty_like(features)
    sorted_features[order] = features
    return sites, sorted_features
