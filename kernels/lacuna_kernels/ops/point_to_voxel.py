"""Features of points averaged on the sites of a level."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lacuna_kernels.graph import Cost, Node
from lacuna_kernels.ops.context import Context
from lacuna_kernels.ops.coordinates import SiteIndex
from lacuna_kernels.types import Axis, Value, ValueType


class PointToVoxel(Node):
    """Mean of the features of the points inside each site: inputs are point features and any value on the sites.

    A site holds the points with floor(voxel / stride) equal to it; a site without points gets zeros, a point without
    a site is left out (SPVCNN's point branch, arXiv 2007.16100).
    """

    op: Literal["point_to_voxel"]
    arity: ClassVar[tuple[int, int]] = (2, 2)

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Sites of the second input with the features of the first."""
        points, sites = inputs
        if points.axis is not Axis.POINT or sites.level is None or len(points.shape) != 1:
            raise ValueError(f"needs features of points, and sites, got {points} and {sites}")
        if points.points != sites.points:
            raise ValueError(f"the points are of cloud {points.points!r}, the sites of {sites.points!r}")
        return replace(sites, shape=points.shape, dtype=points.dtype)

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """One addition a feature; read once, at most as many written."""
        return Cost(rows * inputs[0].channels, 8 * rows * inputs[0].channels)

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Look every point's site up, add up, divide."""
        points, sites = inputs
        level = context.types[self.inputs[1]].level
        assert level is not None and sites.coordinates is not None
        placement = context.placements[level.grid]
        item = torch.repeat_interleave(placement.offsets.diff())[:, None]
        stride = torch.tensor(level.stride, device=item.device)
        cell = torch.div(placement.position.floor().long(), stride, rounding_mode="floor")
        row = SiteIndex(sites.coordinates).find(torch.cat([item, cell], 1))
        row = torch.where(placement.voxel_of_point >= 0, row, -1)
        kept = row >= 0
        sums = points.data.new_zeros(len(sites.coordinates), points.data.shape[1])
        sums = sums.index_add(0, row[kept], points.data[kept])
        counts = torch.bincount(row[kept], minlength=len(sums))
        return Value(sums / counts.clamp(min=1)[:, None], sites.offsets, sites.coordinates)
