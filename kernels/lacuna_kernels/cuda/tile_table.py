"""What was measured of sparse convolutions on one kind of GPU: data that overrides the rule which chooses tiles.

All tiles that are measured for a layer add up in the same order, so results keep their bits, whichever is chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.measurement import Count, Measurement, Objective, class_of
from lacuna_kernels.cuda.scan import blocks
from lacuna_kernels.cuda.sparse_conv_choice import PORTABLE, WGMMA_TILES, ConvShape, candidates, resident
from lacuna_kernels.cuda.sparse_conv_tiles import Tile
from lacuna_kernels.graph import Precision

MOST_PADDING = 2
"""Tiles that pad channels to more than so many times the fewest possible are not measured."""

MapKind = Literal["submanifold", "strided", "inverse", "generative", "identity"]


class Key(NamedTuple):
    """What an entry is found by; see Group.

    rows  a power of two: about as many as there are likely to be
    """

    ci: int
    co: int
    precision: Precision
    aligned: bool
    single: bool
    shortcut: int
    volume: int
    kind: MapKind
    stride: int
    rows: int
    split: bool
    readable: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Sparse convolutions that take the same tile, since nothing that matters tells them apart.

    shape  what the rule goes by
    kind   of the map
    """

    shape: ConvShape
    kind: MapKind

    @property
    def key(self) -> Key:
        """What an entry is found by: the rows in classes."""
        s, rows = self.shape, class_of(self.shape.rows)
        sizes = (s.ci, s.co, s.precision, s.aligned, s.single, s.shortcut, s.volume, self.kind, s.stride, rows)
        return Key(*sizes, s.split, s.readable)

    def __str__(self) -> str:
        s = self.shape
        beside = f" + {s.shortcut}" if s.shortcut else ""
        return f"{self.kind} {s.volume} x {s.ci}{beside} -> {s.co} at stride {s.stride}"


class TileEntry(BaseModel):
    """The tiles that were measured for the sparse convolutions of a group, by name; see Key.

    tiles  means over the layers of the group and the clouds, of one layer
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    ci: Count
    co: Count
    precision: Precision
    aligned: bool
    single: bool
    shortcut: NonNegativeInt
    volume: Count
    kind: MapKind
    stride: Count
    rows: Count
    split: bool = False
    readable: bool = False
    objective: Objective
    tiles: dict[str, Measurement]

    @classmethod
    def of(cls, group: Group, objective: Objective, tiles: dict[str, Measurement]) -> "TileEntry":
        """The entry of a group."""
        return cls(**group.key._asdict(), objective=objective, tiles=tiles)

    @property
    def key(self) -> Key:
        """That of its group."""
        return Key(*(getattr(self, name) for name in Key._fields))

    @property
    def best(self) -> str | None:
        """Name of the tile that has least of the objective; None if that was measured of none."""
        costs = {name: found.cost(self.objective) for name, found in self.tiles.items()}
        best = min(costs, key=costs.__getitem__, default=None)
        return None if best is None or costs[best] == inf else best


@dataclass(frozen=True, slots=True)
class TileTable:
    """Entries by what they are about; a group that is not there is left to the rule."""

    entries: Mapping[Key, TileEntry] = field(default_factory=dict)

    def best(self, group: Group) -> str | None:
        """Name of the tile that was measured best; None without an entry."""
        entry = self.entries.get(group.key)
        return None if entry is None else entry.best

    def tile(self, group: Group, limits: DeviceLimits) -> Tile | None:
        """The tile that was measured best; None without an entry, or if it is none that could be measured today."""
        best = self.best(group)
        named = () if best is None else contenders(group.shape, limits)
        return next((tile for tile in named if name_of(tile) == best), None)

    def with_entries(self, entries: Sequence[TileEntry]) -> "TileTable":
        """The same with some entries added or replaced."""
        return TileTable({**self.entries, **{entry.key: entry for entry in entries}})


def contenders(shape: ConvShape, limits: DeviceLimits) -> list[Tile]:
    """The tiles that are worth measuring, the rule's first: all that run there but those that pad absurdly."""
    rule = candidates(shape, limits)[0]
    tiles = [*PORTABLE[shape.precision]]
    if shape.dtype.itemsize == 2 and limits.hopper:
        tiles = resident(shape) or [*tiles, *(WGMMA_TILES if shape.aligned else ())]
    least_in, least_out = (min(_padded(shape, tile)[axis] for tile in tiles) for axis in (0, 1))
    few = [t for t in tiles if _within(_padded(shape, t), (MOST_PADDING * least_in, MOST_PADDING * least_out))]
    return list(dict.fromkeys([rule, *few]))


def _padded(shape: ConvShape, tile: Tile) -> tuple[int, int]:
    return blocks(shape.ci, tile.k) * tile.k, blocks(shape.co, tile.n) * tile.n


def _within(sizes: tuple[int, int], most: tuple[int, int]) -> bool:
    return sizes[0] <= most[0] and sizes[1] <= most[1]


def name_of(tile: Tile) -> str:
    """The tile's kind and what it is made of, as tables name it.

    A property with its default value is left out, so that one that is added later leaves the names as they were.
    """
    made: Any = tile
    values = {f.name: getattr(made, f.name) for f in fields(made) if getattr(made, f.name) != f.default}
    words = (f"{name}={'x'.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in values.items())
    return " ".join([type(tile).__name__.removesuffix("Tile").lower(), *words])
