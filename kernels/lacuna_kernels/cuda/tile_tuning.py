"""Measuring the tiles of a network's sparse convolutions on real clouds: a part of what `lacuna tune` does.

Plans are drawn in which every layer takes one of its tiles, then the next, and are run step by step: the maps, counts
and features that a layer finds are those of the clouds. They are there only until something else takes their place, so
each layer is measured when its turn has come.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from math import inf

import torch

from lacuna_kernels.cuda.blueprint import Blueprint, draw
from lacuna_kernels.cuda.capacity import Capacity
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.fusion import Layer
from lacuna_kernels.cuda.measurement import Measurement, Objective
from lacuna_kernels.cuda.slot import Slot
from lacuna_kernels.cuda.steps import OVERFLOW, Step, Weights, levels_of
from lacuna_kernels.cuda.tile_table import Group, Key, TileEntry, TileTable, contenders, name_of
from lacuna_kernels.cuda.tuned import Tuned
from lacuna_kernels.cuda.tuning import LIKELY, Meter, timed
from lacuna_kernels.errors import CapacityExceeded
from lacuna_kernels.graph import Graph
from lacuna_kernels.program import TunedGroup
from lacuna_kernels.types import Batch

LAUNCHES = 5
"""Of a layer in the graph that is timed."""


@dataclass(frozen=True, slots=True)
class Scan:
    """A batch on a plan with room for it, and the groups of the layers there, by their steps' names."""

    room: Capacity
    batch: Batch
    groups: Mapping[str, Group]

    def trials(self, limits: DeviceLimits) -> int:
        """How many measurements it takes."""
        return sum(len(contenders(group.shape, limits)) for group in self.groups.values())


@dataclass(frozen=True, slots=True)
class Trial:
    """A layer through one tile, ready to be launched on what the layers before it have made.

    others  seconds that the same layer took through the tiles before
    """

    group: Group
    tile: str
    launch: Callable[[], None]
    others: list[float]

    def __str__(self) -> str:
        return str(self.group)

    def measure(self, meter: Meter | None) -> Measurement:
        """Time it, and measure its energy if there is a meter and no other tile takes far less time."""
        found = timed([self.launch] * LAUNCHES, meter, LIKELY * min(self.others, default=inf))
        self.others.append(found.seconds)
        return found


@dataclass(frozen=True, slots=True)
class Convolutions:
    """A network whose tiles are measured; all is done on a thread and stream that may capture."""

    device: Device
    graph: Graph
    layers: Sequence[Layer]
    weights: Weights

    def scan(self, room: Capacity, batch: Batch) -> Scan:
        """Run the batch once, by the rule's tiles, on a plan with this room or as many more sites as it needs.

        Raises CapacityExceeded if no plan has room for its sites.
        """
        blueprint = self._drawn(room, TileTable())
        with closing(self._loaded(blueprint, batch)) as slot:
            slot.run(blueprint.steps)
            overflowed = bool(slot.buffers[OVERFLOW])
        if not overflowed:
            return Scan(room, batch, blueprint.convolutions)
        larger = room.grown(levels_of(self.graph.types))
        if larger is None:
            raise CapacityExceeded("the coordinates of these clouds fill the hash tables too unevenly to be found")
        return self.scan(larger, batch)

    def trials(self, scan: Scan) -> Iterator[Trial]:
        """Every layer through every tile that is worth measuring; each is launched before the next is asked for."""
        others = {name: list[float]() for name in scan.groups}
        for table in turns(scan.groups.values(), self.device.limits):
            blueprint = self._drawn(scan.room, table)
            with closing(self._loaded(blueprint, scan.batch)) as slot:
                for step in blueprint.steps:
                    slot.run([step])
                    group = blueprint.convolutions.get(step.name)
                    tile = None if group is None else table.best(group)
                    if group is not None and tile is not None:
                        self.device.end_beside()  # nothing else is to run while it is measured
                        yield Trial(group, tile, partial(_launch, step, slot), others[step.name])

    def _drawn(self, room: Capacity, tiles: TileTable) -> Blueprint:
        return draw(self.device, self.graph, self.layers, self.weights, room, Tuned(tiles=tiles))

    def _loaded(self, blueprint: Blueprint, batch: Batch) -> Slot:
        slot = Slot(self.device, blueprint)
        memory = torch.empty(blueprint.shared_bytes, dtype=torch.uint8, device=f"cuda:{self.device.index}")
        slot.bind(blueprint.views(memory))
        slot.load(batch, torch.cuda.current_stream())
        return slot


def _launch(step: Step, slot: Slot) -> None:
    """Run a step; a trial that somebody still has keeps no buffers alive once the slot is closed."""
    slot.run([step])


def turns(groups: Iterable[Group], limits: DeviceLimits) -> Iterator[TileTable]:
    """Tables of one tile a group, the rule's first, until every group has had all that are worth measuring."""
    names = {group: [name_of(tile) for tile in contenders(group.shape, limits)] for group in groups}
    some = Measurement(seconds=1.0)
    for turn in range(max(map(len, names.values()), default=0)):
        left = {group: tiles[turn] for group, tiles in names.items() if turn < len(tiles)}
        yield TileTable().with_entries(
            [TileEntry.of(group, Objective.LATENCY, {tile: some}) for group, tile in left.items()]
        )


@dataclass(slots=True)
class Findings:
    """What was measured so far, by what entries are found by and tile, over layers and batches."""

    objective: Objective
    groups: dict[Key, Group] = field(default_factory=dict)
    found: dict[Key, dict[str, list[Measurement]]] = field(default_factory=dict)

    def meter(self, meter: Meter | None) -> Meter | None:
        """The meter, if energy is the objective."""
        return meter if self.objective is Objective.ENERGY else None

    def add(self, trial: Trial, found: Measurement) -> None:
        """Take in what a trial gave."""
        key = trial.group.key
        self.groups.setdefault(key, trial.group)
        self.found.setdefault(key, {}).setdefault(trial.tile, []).append(found)

    @property
    def entries(self) -> dict[Key, TileEntry]:
        """What a table keeps of them."""
        return {
            key: TileEntry.of(self.groups[key], self.objective, {name: mean(each) for name, each in tiles.items()})
            for key, tiles in self.found.items()
        }

    def summary(self, scans: Iterable[Scan]) -> list[TunedGroup]:
        """What the tiles that were found best save, group by group, in the order of the network."""
        plans, entries = {scan.room.points: scan for scan in scans}, self.entries
        return [
            _compared(points, entries[group.key], group, layers)
            for points, scan in plans.items()
            for group, layers in Counter(scan.groups.values()).items()
        ]


def _compared(points: int, entry: TileEntry, group: Group, layers: int) -> TunedGroup:
    rule, best = next(iter(entry.tiles)), entry.best
    assert best is not None  # the rule's tile is measured whatever the objective
    cost = {name: found.cost(entry.objective) for name, found in entry.tiles.items()}
    return TunedGroup(points, str(group), layers, cost[rule], cost[best], best)


def mean(found: Sequence[Measurement]) -> Measurement:
    """The mean of measurements; its energy only if that of all was measured."""
    joules = [each.joules for each in found if each.joules is not None]
    energy = sum(joules) / len(joules) if len(joules) == len(found) else None
    return Measurement(seconds=sum(each.seconds for each in found) / len(found), joules=energy)
