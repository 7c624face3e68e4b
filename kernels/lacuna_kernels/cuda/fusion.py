"""What runs as one step: batch norm folded into weights, residual and activation moved into the op before them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from torch import Tensor

from lacuna_kernels.graph import Graph, Node, Precision
from lacuna_kernels.model import Weights, node_weights
from lacuna_kernels.ops.activation import DEFAULT_SLOPE, Activation, ActivationNode
from lacuna_kernels.ops.classify import Argmax
from lacuna_kernels.ops.combine import Add, Concat
from lacuna_kernels.ops.devoxelize import Devoxelize
from lacuna_kernels.ops.kronecker_linear import KroneckerLinear
from lacuna_kernels.ops.linear import Linear
from lacuna_kernels.ops.norm import BatchNorm, LayerNorm, batch_norm_affine
from lacuna_kernels.ops.relational_graph_conv import RelationalGraphConv
from lacuna_kernels.ops.sparse_conv import SparseConv

FUSEABLE = (KroneckerLinear, Linear, RelationalGraphConv, SparseConv)
GAPLESS = (KroneckerLinear, LayerNorm, Linear)
"""Ops whose kernels read rows that follow each other without a gap."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One op of the network with what was fused into it: y = f(op(inputs) + bias + residual + shortcut @ its weight).

    node        the op; its own bias and activation are already in `weights` and `activation`
    output      name of the value it makes: that of the last node fused
    weights     fp32 on the CPU, by name without the node's; `shortcut` [channels, out_channels] is that of the shortcut
    precision   of its arithmetic and of its output
    residual    name of the value added before the activation
    shortcut    of a sparse convolution, name of a value on its output sites that goes through a 1^3 convolution
    grid        of an argmax over sites, name of the grid whose points each take the label of their voxel
    """

    node: Node
    output: str
    weights: Mapping[str, Tensor]
    precision: Precision
    residual: str | None = None
    activation: Activation | None = None
    slope: float = DEFAULT_SLOPE
    shortcut: str | None = None
    grid: str | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all values it reads."""
        return (*self.node.inputs, *(name for name in (self.residual, self.shortcut, self.grid) if name is not None))

    @property
    def open(self) -> bool:
        """Whether more can be fused into its end."""
        return isinstance(self.node, FUSEABLE) and self.activation is None


def fuse(graph: Graph, weights: Weights, precision: Precision) -> list[Layer]:
    """Return the layers of a network in an order in which they can run."""
    uses = Counter(name for node in graph.nodes for name in node.inputs) + Counter(list(graph.outputs))
    layers: dict[str, Layer] = {}
    for node in graph.nodes:
        layer = _layer(node, node_weights(weights, node), node.precision or precision)
        _join(layer, {name: layers[name] for name in node.inputs if name in layers and uses[name] == 1}, layers)
    return list(layers.values())


def _layer(node: Node, weights: Mapping[str, Tensor], precision: Precision) -> Layer:
    return Layer(node, node.name, weights, precision, activation=getattr(node, "activation", None))


def _join(layer: Layer, candidates: Mapping[str, Layer], layers: dict[str, Layer]) -> None:
    """Add a layer: fused into the last of the open layers that nothing else reads, if it can be."""
    if isinstance(layer.node, Add) and len(candidates) == 2:
        for first, other in permutations(candidates.values()):
            if (both := _with_shortcut(first, other, layer)) is not None:
                del layers[first.output], layers[other.output]
                layers[layer.output] = both
                return
    for name in reversed([name for name in layers if name in candidates]):
        fused = _fused(candidates[name], layer)
        if fused is not None:
            del layers[name]
            layers[layer.output] = fused
            return
    layers[layer.output] = layer


def _fused(first: Layer, then: Layer) -> Layer | None:
    """Return both as one layer, or None."""
    if isinstance(first.node, Devoxelize) and first.node.mode == "nearest" and isinstance(then.node, Argmax):
        x, grid = first.node.inputs
        return replace(then, node=then.node.model_copy(update={"inputs": (x,)}), grid=grid)
    if not first.open or first.precision is not then.precision:
        return None
    if isinstance(then.node, BatchNorm) and first.residual is None:
        scale, shift = batch_norm_affine(then.weights, then.node.eps)
        return replace(first, output=then.output, weights=scaled(first.node, first.weights, scale, shift))
    if isinstance(then.node, ActivationNode):
        return replace(first, output=then.output, activation=Activation(then.node.op), slope=then.node.negative_slope)
    if isinstance(then.node, Add) and len(then.node.inputs) == 2 and first.residual is None:
        (other,) = [name for name in then.node.inputs if name != first.output]
        return replace(first, output=then.output, residual=other)
    return None


def _with_shortcut(first: Layer, other: Layer, add: Layer) -> Layer | None:
    """Return a sparse convolution and the 1^3 convolution that is added to it as one layer, or None."""
    layers = (first, other)
    if not all(isinstance(one.node, SparseConv) and one.open and len(one.inputs) == 1 for one in layers):
        return None
    if {one.precision for one in layers} != {add.precision} or not _is_pointwise(other.node):
        return None
    weights = {**first.weights, "shortcut": other.weights["weight"][0]}
    biases = [one.weights["bias"] for one in layers if "bias" in one.weights]
    if biases:
        weights |= {"bias": sum(biases[1:], biases[0])}
    return replace(first, output=add.output, weights=weights, shortcut=other.node.inputs[0])


def _is_pointwise(node: Node) -> bool:
    return isinstance(node, SparseConv) and node.mode == "submanifold" and node.geometry.volume == 1


def scaled(node: Node, weights: Mapping[str, Tensor], scale: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """Weights of op(x) * scale + shift, for scale and shift by output feature: fp32."""
    result = dict(weights)
    result["bias"] = shift + (weights["bias"] * scale if "bias" in weights else 0)
    if isinstance(node, KroneckerLinear):
        key = f"factors.{len(node.patterns) - 1}"
        a, b, _, d = node.patterns[-1]
        result[key] = weights[key] * scale.reshape(a, b, 1, d)
    elif isinstance(node, Linear):
        result["weight"] = weights["weight"] * scale[:, None]
    else:
        result |= {key: weights[key] * scale for key in ("weight", "root", "shortcut") if key in weights}
    return result


@dataclass(frozen=True, slots=True)
class Part:
    """Where a value lies in a wider one: `width` columns of `whole` from `start`."""

    whole: str
    start: int
    width: int


def joins(graph: Graph, layers: Sequence[Layer]) -> dict[str, Part]:
    """Return the values that are best written straight into the concatenation that reads them, by name.

    Those of sparse convolutions, read by nothing that needs rows without gaps, none of them an output.
    """
    made_by = {layer.output: layer for layer in layers}
    readers = Counter(name for layer in layers if isinstance(layer.node, GAPLESS) for name in layer.inputs)
    parts: dict[str, Part] = {}
    for layer in layers:
        if not isinstance(layer.node, Concat) or layer.output in graph.outputs:
            continue
        start = 0
        for name in layer.node.inputs:
            width, source = graph.types[name].channels, made_by.get(name)
            free = name not in parts and name not in graph.outputs and not readers[name]
            if free and source is not None and _writes_parts(source, layer):
                parts[name] = Part(layer.output, start, width)
            start += width
    return parts


def _writes_parts(source: Layer, concat: Layer) -> bool:
    return isinstance(source.node, SparseConv) and source.precision is concat.precision
