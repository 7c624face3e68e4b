"""Features of sites back at the points of the cloud."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lacuna_kernels.graph import Cost, Node
from lacuna_kernels.ops.context import Context, Placement
from lacuna_kernels.ops.coordinates import SiteIndex
from lacuna_kernels.types import Axis, Triple, Value, ValueType


class Devoxelize(Node):
    """Features of sites at the points of the cloud: inputs are the site value and the voxelize node of the cloud.

    nearest    the features of the voxel that holds the point; sites of the finest level only
    trilinear  a mean of the (up to 8) active sites around the point, weighted by prod(1 - |distance|) in steps of the
               level's stride, where a site sits at its integer corner (as in TorchSparse, arXiv 2204.10319);
               weights of missing sites are left out and the rest scaled to sum 1

    A point outside the grid's range, or with no site around it, gets zeros.
    """

    op: Literal["devoxelize"]
    mode: Literal["nearest", "trilinear"] = "nearest"
    arity: ClassVar[tuple[int, int]] = (2, 2)

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Points with the features of the sites."""
        x, grid = inputs
        if x.level is None or grid.level is None or grid.level.name != grid.level.grid:
            raise ValueError(f"needs sites and the voxelize node of their cloud, got {x} and {grid}")
        if x.level.grid != grid.level.grid:
            raise ValueError(f"the sites come from grid {x.level.grid!r}, not from {grid.level.grid!r}")
        if self.mode == "nearest" and x.level.name != grid.level.name:
            raise ValueError(f"mode nearest needs sites of {grid.level.name!r}, got those of {x.level.name!r}")
        return replace(x, axis=Axis.POINT, level=None, points=grid.points)

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """One read and write a feature and corner."""
        corners = 1 if self.mode == "nearest" else 8
        return Cost(2 * corners * rows * inputs[0].channels, (corners + 1) * rows * inputs[0].channels * 4)

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Gather, or interpolate."""
        x, level = inputs[0], context.types[self.inputs[0]].level
        assert level is not None
        placement = context.placements[level.grid]
        if self.mode == "nearest":
            return Value(gather_rows(x.data, placement.voxel_of_point), placement.offsets)
        return Value(interpolate(x, placement, level.stride), placement.offsets)


def interpolate(x: Value, placement: Placement, stride: Triple) -> Tensor:
    """Trilinear mean of the sites around every point: fp32 [points, channels]."""
    assert x.coordinates is not None
    position = placement.position / torch.tensor(stride, dtype=torch.float32, device=x.data.device)
    item = torch.repeat_interleave(placement.offsets.diff())[:, None]
    corner, index = position.floor(), SiteIndex(x.coordinates)
    total = x.data.new_zeros(len(position), x.data.shape[1])
    sum_of_weights = x.data.new_zeros(len(position), 1)
    for step in product((0, 1), repeat=3):
        near = corner + torch.tensor(step, device=corner.device)
        row = torch.where(placement.voxel_of_point >= 0, index.find(torch.cat([item, near.long()], 1)), -1)
        share = (1 - (position - near).abs()).prod(1, keepdim=True)
        weight = torch.where(row[:, None] >= 0, share, 0)  # not a product: the share of a point at infinity is NaN
        total = total + weight * gather_rows(x.data, row)
        sum_of_weights = sum_of_weights + weight
    return total / torch.where(sum_of_weights > 0, sum_of_weights, 1)


def gather_rows(data: Tensor, rows: Tensor) -> Tensor:
    """Return data[rows], with zeros where a row is -1."""
    if not len(data):
        return data.new_zeros(len(rows), *data.shape[1:])
    found = (rows >= 0).reshape(-1, *[1] * (data.ndim - 1))
    return torch.where(found, data[rows.clamp(min=0)], 0)
