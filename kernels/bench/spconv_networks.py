"""The sparse networks of our zoo through spconv 2.3.8, with the same weights, to be measured against.

Batch norms are folded into weights and 1^3 shortcuts are products of torch, as in our own plans. Points are made voxels
before the clock starts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import spconv as spconv_package
import spconv.pytorch as spconv
import torch
from spconv.core import ConvAlgo
from torch import Tensor, nn

from bench.sparse_conv_error import relative_l2
from lacuna_kernels import Batch, Graph, Precision, Value
from lacuna_kernels.cuda.fusion import Layer, fuse
from lacuna_kernels.ops.activation import Activation
from lacuna_kernels.ops.linear import Linear
from lacuna_kernels.ops.sparse_conv import SparseConv
from lacuna_kernels.ops.voxelize import Voxelize

VERSION = str(getattr(spconv_package, "__version__", "of some version"))
ALIGNED = 16
"""Coordinates begin at a multiple of the largest stride, so that cells of cells are the same as ours."""


@dataclass(frozen=True, slots=True)
class Voxels:
    """What spconv begins with.

    coordinates     int32 [n, 4] as (item, x, y, z), none negative
    features        fp16 [n, columns], means
    voxel_of_point  int64 [points], -1 outside the grid
    shape, items    cells by axis, clouds of the batch
    """

    coordinates: Tensor
    features: Tensor
    voxel_of_point: Tensor
    shape: list[int]
    items: int


def voxels_of(graph: Graph, batch: Batch) -> Voxels:
    """Voxels of a batch for the graph's only grid, by torch on the device."""
    (grid,) = (node for node in graph.nodes if isinstance(node, Voxelize))
    cloud = batch[grid.inputs[0]]
    assert cloud.offsets is not None
    points, offsets = cloud.data.cuda(), cloud.offsets.cuda()
    position = grid.positions(points)
    cells = torch.tensor(grid.cells or (1 << 30,) * 3, device="cuda")
    kept = torch.ones(len(points), dtype=torch.bool, device="cuda")
    if grid.cells is not None:
        kept = ((position >= 0) & (position < cells)).all(1)
    item = torch.repeat_interleave(offsets.diff())[:, None]
    found, inverse = torch.cat([item, position.floor().long()], 1)[kept].unique(dim=0, return_inverse=True)
    sums = torch.zeros(len(found), points.shape[1], device="cuda").index_add(0, inverse, points[kept])
    voxel_of_point = torch.full((len(points),), -1, device="cuda")
    voxel_of_point[kept] = inverse
    shape = graph.types[grid.name].level.spatial_shape if grid.cells is not None else None  # type: ignore[union-attr]
    if shape is None:
        low = found[:, 1:].amin(0).div(ALIGNED, rounding_mode="floor") * ALIGNED
        found[:, 1:] -= low
        shape = tuple((found[:, 1:].amax(0) + ALIGNED).tolist())
    means = sums / torch.bincount(inverse)[:, None]
    return Voxels(found.int().contiguous(), means.half(), voxel_of_point, list(shape), cloud.items)


class Network(nn.Module):
    """A graph's layers from its voxels to the last value on sites, a SparseConvTensor, which calling it gives."""

    def __init__(self, graph: Graph, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.graph, self.layers = graph, [*fuse(graph, weights, Precision.FP16)]
        self.convolutions = nn.ModuleDict()
        sizes: dict[str, tuple[int, int, int]] = {}
        for layer in self.layers:
            if isinstance(layer.node, SparseConv):
                self.convolutions[_key(layer.output)] = self._convolution(layer, sizes)
        self.others = {
            (layer.output, name): weight.half().cuda()
            for layer in self.layers
            for name, weight in layer.weights.items()
            if name == "shortcut" or isinstance(layer.node, Linear)
        }

    def _convolution(self, layer: Layer, sizes: dict[str, tuple[int, int, int]]) -> nn.Module:
        node, weight, bias = layer.node, layer.weights["weight"], layer.weights.get("bias")
        assert isinstance(node, SparseConv)
        (_, ci, co), algo, has = weight.shape, ConvAlgo.MaskImplicitGemm, bias is not None
        if node.mode == "inverse":
            assert node.of is not None
            size = sizes[node.of]
            made = spconv.SparseInverseConv3d(ci, co, size, indice_key=node.of, bias=has, algo=algo)
        elif node.mode == "strided":
            g, size = node.geometry, node.geometry.kernel_size
            made = spconv.SparseConv3d(
                ci, co, size, g.stride, g.padding, g.dilation, bias=has, indice_key=node.name, algo=algo
            )
            sizes[node.name] = size
        elif node.mode != "submanifold":
            raise NotImplementedError(f"{node.name}: {node.mode}")
        else:
            size, level = node.geometry.kernel_size, self.graph.types[layer.output].level
            assert level is not None
            made = spconv.SubMConv3d(ci, co, size, bias=has, indice_key=f"{level.name} {size}", algo=algo)
        with torch.no_grad():
            made.weight.copy_(weight.view(*size, ci, co).permute(4, 0, 1, 2, 3))
            if bias is not None:
                made.bias.copy_(bias)
        return cast(nn.Module, made.half().cuda())

    @torch.no_grad()
    def forward(self, given: Voxels) -> Any:
        values: dict[str, Any] = {}
        last = None
        for layer in self.layers:
            node, names = layer.node, layer.node.inputs
            if isinstance(node, Voxelize):
                made = spconv.SparseConvTensor(given.features, given.coordinates, given.shape, given.items)
            elif isinstance(node, SparseConv):
                made = self._finished(layer, self.convolutions[_key(layer.output)](values[names[0]]), values)
            elif node.op == "concat":
                joined = torch.cat([values[name].features for name in names], 1)
                made = values[names[0]].replace_feature(joined)
            elif isinstance(node, Linear):
                weight, bias = (self.others.get((layer.output, name)) for name in ("weight", "bias"))
                made = values[names[0]].replace_feature(nn.functional.linear(values[names[0]].features, weight, bias))
            else:
                break  # back to points
            values[layer.output] = last = made
        return last

    def _finished(self, layer: Layer, made: Any, values: Mapping[str, Any]) -> Any:
        y = made.features
        if layer.shortcut is not None:
            y = torch.addmm(y, values[layer.shortcut].features, self.others[layer.output, "shortcut"])
        if layer.residual is not None:
            y = y + values[layer.residual].features
        if layer.activation not in (None, Activation.RELU):
            raise NotImplementedError(f"{layer.output}: {layer.activation}")
        return made.replace_feature(torch.relu(y) if layer.activation is not None else y)

    def run(self, given: Voxels) -> Any:
        """What our program gives: the class of each point, int64 [points], or the last value on sites."""
        last = self(given)
        if not self._has_labels:
            return last
        row = given.voxel_of_point
        return torch.where(row < 0, 0, last.features.argmax(1)[row])

    def numbers(self, given: Voxels) -> Value:
        """What is before labels: scores of each point, or the last value on sites."""
        last, row = self(given), given.voxel_of_point[:, None]
        if not self._has_labels:
            return Value(last.features, None, last.indices)
        return Value(torch.where(row < 0, 0, last.features[given.voxel_of_point]))

    @property
    def _has_labels(self) -> bool:
        return any(node.op == "argmax" for node in self.graph.nodes)


def _key(name: str) -> str:
    return name.replace(".", "_")


def agreement(ours: Mapping[str, Value], theirs: Any) -> dict[str, float]:
    """How outputs of a batch compare: labels that are equal, or the relative L2 distance of features on equal sites."""
    if "labels" in ours:
        return {"labels equal": round(float((ours["labels"].data == theirs.cpu()).float().mean()), 5)}
    (mine,) = ours.values()
    distance = relative_l2(Value(theirs.features, None, theirs.indices), mine)
    return {"relative L2": float(f"{distance:.3g}")}
