"""How large a plan is: rows or points, items, and the sites of every level that may come of them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

from lacuna_kernels.graph import Graph
from lacuna_kernels.types import Axis, Level, ValueType

MIN_POINTS = 1 << 14
MIN_CLOUDS = 16
FIRST_GROWTH = 2


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a plan has room for.

    points  points of each cloud input, and edges of each edge input: a batch's cost is the most of any
    items   rows, sequences, images or clouds of a batch
    growth  no level has room for more than growth * points sites; a batch that needs more runs again on a larger plan
    """

    points: int
    items: int
    growth: int = FIRST_GROWTH

    def holds(self, other: "Capacity") -> bool:
        """Whether whatever fits the other fits this too."""
        return self.points >= other.points and self.items >= other.items and self.growth >= other.growth

    def sites(self, level: Level) -> int:
        """Room for the sites of a level: what can come of its parent's at most, and of `growth`, and of its cells."""
        if level.parent is None or level.geometry is None:
            bound = self.points
        else:
            bound = min(self.sites(level.parent) * prod(level.geometry.fan_out), self.growth * self.points)
        if level.spatial_shape is not None and level.parent is not None:
            bound = min(bound, self.items * prod(level.spatial_shape))
        return max(1, bound)

    def grown(self, levels: Iterable[Level]) -> "Capacity | None":
        """The same with twice the growth, None if no level would get more room: then it holds all that can come."""
        larger = replace(self, growth=2 * self.growth)
        return larger if any(larger.sites(level) > self.sites(level) for level in levels) else None

    def of(self, kind: ValueType) -> int:
        """Room for the first axis of a value."""
        if kind.level is not None:
            return self.sites(kind.level)
        return self.points if kind.axis in (Axis.POINT, Axis.EDGE) else self.items


@dataclass(frozen=True, slots=True)
class Sizes:
    """How the capacities of one network's plans are chosen.

    ragged     whether it takes clouds or graphs, so that cost counts points or edges; else cost counts items
    min_items  smallest number of items; dense work is done for all of them, whether they are there or not
    max_cost   largest batch that may ever be run
    """

    ragged: bool
    min_items: int
    max_cost: int

    @classmethod
    def of(cls, graph: Graph, max_cost: int) -> "Sizes":
        """Sizes for a network: room for some clouds from the start unless they become images."""
        ragged = any(kind.axis.ragged for kind in graph.input_value_types.values())
        dense = any(kind.axis in (Axis.IMAGE, Axis.SEQUENCE, Axis.ROW) for kind in graph.types.values())
        return cls(ragged, MIN_CLOUDS if ragged and not dense else 1, max_cost)

    def capacity(self, cost: int, items: int, growth: int = FIRST_GROWTH) -> Capacity:
        """The capacity for a batch, in powers of two; more cost than max_cost gets no room."""
        if not self.ragged:
            return Capacity(1, max(1, min(power_of_two(items), self.max_cost)), growth)
        points = min(max(power_of_two(cost), MIN_POINTS), self.max_cost)
        return Capacity(max(1, points), max(power_of_two(items), self.min_items), growth)

    def has_room(self, room: Capacity, cost: int, items: int, growth: int) -> bool:
        """The same as `room.holds(self.capacity(cost, items, growth))`, without making one, for rooms made by this."""
        return (cost <= room.points or not self.ragged) and items <= room.items and growth <= room.growth

    def first(self, initial_cost: int) -> Capacity:
        """The capacity of the plan that is made at the start."""
        return self.capacity(min(initial_cost, self.max_cost), 1)

    def served(self, cost: int, items: int, initial_cost: int) -> Capacity:
        """The capacity of the plan that a batch runs on if it comes first: that of the start if it has room."""
        first, need = self.first(initial_cost), self.capacity(cost, items)
        return first if first.holds(need) else need

    def cost(self, capacity: Capacity) -> int:
        """The largest batch that a capacity has room for, in the unit of cost."""
        return capacity.points if self.ragged else capacity.items


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()
