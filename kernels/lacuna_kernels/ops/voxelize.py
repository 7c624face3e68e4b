"""Points to voxels."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lacuna_kernels.errors import InputError
from lacuna_kernels.graph import Cost, Node
from lacuna_kernels.ops.context import Context, Placement
from lacuna_kernels.ops.coordinates import COORDINATE_LIMIT, Cells, count_offsets, unique_first
from lacuna_kernels.types import Axis, Level, Triple, Value, ValueType

Metres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Place = Annotated[float, Field(allow_inf_nan=False)]


class Voxelize(Node):
    """One site per occupied voxel floor((point - origin) / voxel_size), with the first or the mean of its points.

    range_m        x, y, z from and to: the origin is the lower corner and points outside are left out;
                   without it any point counts and coordinates may be negative
    spatial_shape  cells by axis, for the strided convolutions below; round((to - from) / voxel_size) by default
    """

    op: Literal["voxelize"]
    voxel_size_m: tuple[Metres, Metres, Metres]
    origin_m: tuple[Place, Place, Place] = (0.0, 0.0, 0.0)
    range_m: tuple[Place, Place, Place, Place, Place, Place] | None = None
    spatial_shape: tuple[Cells, Cells, Cells] | None = None
    reduce: Literal["mean", "first"] = "mean"

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.range_m is not None:
            if self.origin_m != (0.0, 0.0, 0.0):
                raise ValueError("give range_m or origin_m, not both: the origin is the range's lower corner")
            if max(self._steps(self.range_m)) >= COORDINATE_LIMIT:
                raise ValueError(
                    f"range_m {self.range_m} must hold less than {COORDINATE_LIMIT} voxels along each axis"
                )
            if min(self.cells or (0,)) < 1:
                raise ValueError(f"range_m {self.range_m} holds no voxel of {self.voxel_size_m}")
        return self

    @property
    def origin(self) -> tuple[float, float, float]:
        """Where voxel (0, 0, 0) starts, in metres."""
        return self.origin_m if self.range_m is None else self.range_m[:3]

    @property
    def cells(self) -> Triple | None:
        """Voxels inside the range, by axis; None without a range."""
        if self.range_m is None:
            return None
        x, y, z = map(round, self._steps(self.range_m))
        return (x, y, z)

    def _steps(self, bounds: tuple[float, ...]) -> list[float]:
        """Voxel sizes between the lower and the upper bounds, by axis."""
        return [(bounds[3 + axis] - bounds[axis]) / self.voxel_size_m[axis] for axis in range(3)]

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Sites with every column of the cloud as a feature."""
        (kind,) = inputs
        if kind.points != self.inputs[0] or not kind.columns:
            raise ValueError(f"needs an input cloud with columns x, y, z, ..., got {kind}")
        level = Level(self.name, (1, 1, 1), self.spatial_shape or self.cells, self.name)
        return ValueType(Axis.SITE, kind.shape, kind.dtype, level=level, points=kind.points)

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """Three divisions and an addition a column; points read once, at most as many voxels written."""
        return Cost(rows * (3 + inputs[0].channels), 2 * rows * inputs[0].channels * 4)

    def positions(self, points: Tensor) -> Tensor:
        """Positions in voxels from the origin, fp32 [n, 3]; a true division, so that every device rounds alike."""
        origin = torch.tensor(self.origin, dtype=torch.float32, device=points.device)
        size = torch.tensor(self.voxel_size_m, dtype=torch.float32, device=points.device)
        return (points[:, :3] - origin) / size

    def check_positions(self, points: Tensor, largest: float | None = None) -> None:
        """Raise InputError if a point that counts lies further than 2^30 voxels from the origin.

        largest  absolute value among the numbers of the points, where it is known already
        """
        if self.cells is None and len(points) and not self._are_near(points.detach(), largest):
            furthest = float(self.positions(points.detach()).abs().max())
            if not furthest < COORDINATE_LIMIT:
                raise InputError(
                    f"a point lies {furthest:.3g} voxels of {self.voxel_size_m} m from the origin, "
                    f"node {self.name!r} takes less than {COORDINATE_LIMIT}"
                )

    def _are_near(self, points: Tensor, largest: float | None) -> bool:
        """Whether no number of the points is large enough for a position out of bounds: quick, and nearly always so."""
        if largest is None:
            largest = float(points.abs().max())
        return (largest + max(map(abs, self.origin))) / min(self.voxel_size_m) < COORDINATE_LIMIT / 2

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Number voxels by their first point; reduce over the points of each."""
        (cloud,) = inputs
        assert cloud.offsets is not None
        self.check_positions(cloud.data)
        position = self.positions(cloud.data)
        kept = self._inside(position)
        item = torch.repeat_interleave(cloud.offsets.diff())
        coordinates = torch.cat([item[:, None], position.floor().long()], 1)[kept].int()
        rows, inverse = unique_first(coordinates)
        voxel_of_point = torch.full((len(position),), -1, dtype=torch.int64, device=position.device)
        voxel_of_point[kept] = inverse
        context.placements[self.name] = Placement(voxel_of_point, position, cloud.offsets)
        data = self._reduce(cloud.data[kept], rows, inverse)
        sites = Value(data, count_offsets(coordinates[rows], cloud.items), coordinates[rows])
        context.sites[self.name] = sites
        return sites

    def _inside(self, position: Tensor) -> Tensor:
        if self.cells is None:
            return torch.ones(len(position), dtype=torch.bool, device=position.device)
        cells = torch.tensor(self.cells, device=position.device)
        return ((position >= 0) & (position < cells)).all(1)

    def _reduce(self, points: Tensor, rows: Tensor, inverse: Tensor) -> Tensor:
        if self.reduce == "first":
            return points[rows]
        sums = points.new_zeros(len(rows), points.shape[1]).index_add(0, inverse, points)
        return sums / torch.bincount(inverse, minlength=len(rows))[:, None]
