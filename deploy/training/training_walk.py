"""Walk a graph as in training: batch norms use the batch, and convolutions are one gather and one product each.

The result is what `lacuna_kernels.walk` gives, but for batch norms; only the way there is quicker and leaner.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lacuna_kernels import Batch, Graph, Value
from lacuna_kernels.ops import coordinates as sites
from lacuna_kernels.ops.context import Context
from lacuna_kernels.ops.norm import BatchNorm
from lacuna_kernels.ops.sparse_conv import SparseConv, active_sites
from lacuna_kernels.types import Geometry

MOMENTUM = 0.02
LEFT_OUT = ("argmax", "softmax")


def training_walk(graph: Graph, weights: Mapping[str, Tensor], batch: Batch, dtype: torch.dtype) -> dict[str, Value]:
    """Return the values of all nodes but the last, argmax and softmax; running statistics are updated in place.

    dtype  of the features between nodes; weights stay as they are, norms and sums over sites are fp32
    """
    context, values = Context(graph.types), dict(batch)
    for node in graph.nodes:
        if node.op in LEFT_OUT:
            continue
        inputs = [values[name] for name in node.inputs]
        own = {name.removeprefix(f"{node.name}."): w for name, w in weights.items() if name.startswith(f"{node.name}.")}
        if isinstance(node, SparseConv):
            values[node.name] = convolve(node, inputs[0], own["weight"].to(dtype), context)
        elif isinstance(node, BatchNorm):
            values[node.name] = normalise(inputs[0], own, node.eps)
        elif node.op == "linear":
            own = {name: w.to(dtype) for name, w in own.items()}
            values[node.name] = node.reference(inputs, own, context)
        else:
            y = node.reference(inputs, own, context)
            values[node.name] = Value(y.data.to(dtype), y.offsets, y.coordinates)
    return values


def normalise(x: Value, own: Mapping[str, Tensor], eps: float) -> Value:
    """Batch norm with the statistics of the batch."""
    y = functional.batch_norm(
        x.data, own["running_mean"], own["running_var"], own["weight"], own["bias"], True, MOMENTUM, eps
    )
    return Value(y, x.offsets, x.coordinates)


@dataclass(frozen=True, slots=True)
class MapPair:
    """A kernel map and the same read backwards, by site: int64 [m, k] and [n, k]; no input is the row after the last.

    forward of a convolution from n to m sites holds rows of the n, backward rows of the m.
    """

    forward: Tensor
    backward: Tensor


def convolve(node: SparseConv, x: Value, weight: Tensor, context: Context) -> Value:
    """Sparse convolution without bias or activation, which a batch norm and a node of its own stand for."""
    if node.mode == "submanifold" and len(weight) == 1:
        return Value(x.data @ weight[0], x.offsets, x.coordinates)
    out, maps = map_of(node, x, context)
    y = GatherProduct.apply(x.data, weight, maps)  # type: ignore[no-untyped-call]
    return Value(y, out.offsets, out.coordinates)


def map_of(node: SparseConv, x: Value, context: Context) -> tuple[Value, MapPair]:
    """The output sites of a convolution, and its kernel map; both are kept for the nodes that share them."""
    level_in, level = context.types[node.inputs[0]].level, context.types[node.name].level
    assert level_in is not None and level is not None and x.coordinates is not None
    if node.mode == "inverse":
        assert level_in.geometry is not None
        fine = context.sites[level.name]
        forward, backward = both_ways(fine, x, level_in.name, level_in.geometry, context)
        return fine, MapPair(backward, forward)
    if level.name not in context.sites:
        coordinates = active_sites(x.coordinates, level)
        context.sites[level.name] = Value(coordinates, sites.count_offsets(coordinates, x.items), coordinates)
    out = context.sites[level.name]
    return out, MapPair(*both_ways(x, out, level.name, node.geometry, context))


def both_ways(inputs: Value, outputs: Value, level: str, g: Geometry, context: Context) -> tuple[Tensor, Tensor]:
    """The kernel map from input to output sites, and the same read backwards, built on first use."""
    fine, coarse = inputs.coordinates, outputs.coordinates
    assert fine is not None and coarse is not None

    def forward() -> Tensor:
        return context.map((level, g), lambda: sites.kernel_map(fine, coarse, g))

    return (
        context.map((level, g, "forward"), lambda: site_by_site(forward(), len(fine))),
        context.map((level, g, "backward"), lambda: site_by_site(sites.inverse_map(forward(), len(fine)), len(coarse))),
    )


def site_by_site(kernel_map: Tensor, missing: int) -> Tensor:
    """Turn a map [k, m] with -1 into [m, k] with `missing` instead."""
    return torch.where(kernel_map < 0, missing, kernel_map).T.contiguous()


class GatherProduct(torch.autograd.Function):
    """y = sum over k of x[map[k]] @ weight[k], as one gather and one product, and the gradient likewise."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, maps: MapPair) -> Tensor:
        """Gather the rows of all offsets beside each other and multiply once."""
        ctx.save_for_backward(x, weight)
        ctx.maps = maps  # type: ignore[attr-defined]
        return gathered(x, maps.forward) @ weight.flatten(0, 1)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        """The gradient of x is the same product over the map read backwards."""
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        maps: MapPair = ctx.maps  # type: ignore[attr-defined]
        grad_weight = (gathered(x, maps.forward).T @ grad).reshape(weight.shape)
        if not ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            return None, grad_weight, None
        return gathered(grad, maps.backward) @ weight.transpose(1, 2).flatten(0, 1), grad_weight, None


def gathered(x: Tensor, rows: Tensor) -> Tensor:
    """The rows of all offsets beside each other, zeros for a missing one: x [n, c] and rows [m, k] give [m, k * c]."""
    padded = torch.cat([x, x.new_zeros(1, x.shape[1])])
    return padded.index_select(0, rows.flatten()).reshape(len(rows), -1)
