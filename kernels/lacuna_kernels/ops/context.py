"""What one walk over a graph remembers between nodes: where points went, and which sites feed which."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lacuna_kernels.types import Value, ValueType


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the points of a cloud lie in a grid.

    voxel_of_point  int64 [points], -1 for a point outside the grid's range
    position        fp32 [points, 3], in voxels from the grid's origin, before rounding down
    offsets         int64 [items + 1], of the points
    """

    voxel_of_point: Tensor
    position: Tensor
    offsets: Tensor


@dataclass(slots=True)
class Context:
    """State of one walk; made anew for every batch.

    types       type of every value of the graph
    placements  by name of the voxelize node
    sites       by name of the level: a value with the level's coordinates and offsets (its data does not matter)
    maps        kernel maps int64 [k, sites out], -1 where there is no input, by what they depend on
    """

    types: Mapping[str, ValueType]
    placements: dict[str, Placement] = field(default_factory=dict)
    sites: dict[str, Value] = field(default_factory=dict)
    maps: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    def map(self, key: tuple[object, ...], build: Callable[[], Tensor]) -> Tensor:
        """Return the kernel map of that key, built on first use."""
        if key not in self.maps:
            self.maps[key] = build()
        return self.maps[key]
