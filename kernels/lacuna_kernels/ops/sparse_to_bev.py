"""Sites to a dense bird's-eye view."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from lacuna_kernels.graph import Cost, Node
from lacuna_kernels.ops.context import Context
from lacuna_kernels.types import Axis, Value, ValueType


class SparseToBev(Node):
    """Image [n, channels * Z, Y, X] of the sites, zero where there is none; channel c at height z is c*Z + z.

    That is the order of spconv's dense() with its two first axes joined.
    The level needs a spatial shape (X, Y, Z): give voxelize a range_m or a spatial_shape. Sites outside are left out.
    """

    op: Literal["sparse_to_bev"]

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Image of the level's spatial shape."""
        (kind,) = inputs
        if kind.level is None or not kind.dtype.is_float or len(kind.shape) != 1:
            raise ValueError(f"needs features on sites, got {kind}")
        if kind.level.spatial_shape is None:
            raise ValueError(f"the sites of {kind.level.name!r} have no spatial shape; voxelize needs a range_m")
        x, y, z = kind.level.spatial_shape
        return ValueType(Axis.IMAGE, (kind.channels * z, y, x), kind.dtype)

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """No arithmetic; features read once, and one image written."""
        channels, height, width = self.infer_type(inputs).shape
        return Cost(0, 4 * (rows * inputs[0].channels + channels * height * width))

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Scatter features to their cells."""
        (x,) = inputs
        level = context.types[self.inputs[0]].level
        assert x.coordinates is not None and level is not None and level.spatial_shape is not None
        size_x, size_y, size_z = level.spatial_shape
        item, cx, cy, cz = x.coordinates.long().unbind(1)
        kept = (cx >= 0) & (cx < size_x) & (cy >= 0) & (cy < size_y) & (cz >= 0) & (cz < size_z)
        grid = x.data.new_zeros(x.items, size_z, size_y, size_x, x.data.shape[1])
        places = tuple(index[kept] for index in (item, cz, cy, cx))
        grid = grid.index_put(places, x.data[kept])
        return Value(grid.permute(0, 4, 1, 2, 3).flatten(1, 2))
