"""Relational graph convolution (R-GCN): Schlichtkrull et al., arXiv 1703.06103."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lacuna_kernels.graph import Cost, Node, Size
from lacuna_kernels.ops.activation import Activation, activate, floats
from lacuna_kernels.ops.context import Context
from lacuna_kernels.types import Axis, Value, ValueType


class RelationalGraphConv(Node):
    """y_i = f(x_i @ root + bias + sum over relations r of mean over edges j -> i of relation r of x_j @ weight[r]).

    Inputs are features of nodes [n, channels] and the edges [e, 3] that join them: source j, target i, relation r. An
    edge that is there twice counts twice; a node without edges of a relation gets nothing by it.

    weight [relations, channels, out_channels], root [channels, out_channels], bias [out_channels]: as RGCNConv of
    PyTorch Geometric has them, its bases or blocks multiplied out

    aggregate  "mean" over the edges of a relation into a node, or "sum", which a GPU rounds to the layer's precision:
               past 65504 it is infinite in fp16, so that nodes with very many edges are for bf16 or fp32
    root       whether a node's own features count, by a weight of their own
    """

    op: Literal["relational_graph_conv"]
    out_channels: Size
    aggregate: Literal["mean", "sum"] = "mean"
    root: bool = True
    bias: bool = True
    activation: Activation | None = None
    arity: ClassVar[tuple[int, int]] = (2, 2)

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """The same nodes with out_channels features."""
        x, edges = inputs
        if x.axis is not Axis.POINT or len(x.shape) != 1 or edges.axis is not Axis.EDGE:
            raise ValueError(f"needs features of nodes (points), and edges, got {x} and {edges}")
        if x.points != edges.points:
            raise ValueError(f"the edges join {edges.points!r}, the features are of {x.points!r}")
        return replace(floats(x), shape=(self.out_channels,), columns=())

    def weight_shapes(self, inputs: Sequence[ValueType]) -> dict[str, tuple[int, ...]]:
        """A matrix a relation, that of the node itself, and bias."""
        ci, co = inputs[0].channels, self.out_channels
        shapes: dict[str, tuple[int, ...]] = {"weight": (inputs[1].relations, ci, co)}
        shapes |= {"root": (ci, co)} if self.root else {}
        return shapes | ({"bias": (co,)} if self.bias else {})

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """For one edge of every relation into every node: 2 * in * out FLOP and an addition a channel for each."""
        relations, ci, co = inputs[1].relations, inputs[0].channels, self.out_channels
        matrices = relations + self.root
        flop = rows * (2 * matrices * ci * co + relations * ci)
        return Cost(flop, 4 * (rows * (ci + co + 3 * relations) + matrices * ci * co))

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Gather and add up by relation and target; multiply relation by relation; add up by target."""
        x, edges = inputs
        source, target, relation = numbered(x, edges)
        n = max(1, len(x.data))
        pairs, pair = torch.unique(relation * n + target, return_inverse=True)
        sums = x.data.new_zeros(len(pairs), x.data.shape[1]).index_add(0, pair, x.data[source])
        if self.aggregate == "mean":
            sums = sums / torch.bincount(pair, minlength=len(pairs))[:, None]
        counts = torch.bincount(pairs // n, minlength=len(weights["weight"])).tolist()
        products = [part @ weight for part, weight in zip(torch.split(sums, counts), weights["weight"], strict=True)]
        y = x.data @ weights["root"] if self.root else x.data.new_zeros(len(x.data), self.out_channels)
        y = y.index_add(0, pairs % n, torch.cat(products))
        if self.bias:
            y = y + weights["bias"]
        return Value(activate(y, self.activation), x.offsets)


def numbered(x: Value, edges: Value) -> tuple[Tensor, Tensor, Tensor]:
    """Source, target and relation of every edge: int64 [edges], nodes by their row of x."""
    assert x.offsets is not None and edges.offsets is not None
    source, target, relation = edges.data.long().unbind(1)
    first = x.offsets[:-1].repeat_interleave(edges.offsets.diff())
    return source + first, target + first, relation
