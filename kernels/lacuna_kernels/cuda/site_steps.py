"""Steps that make sites and kernel maps, and how other steps find them among the buffers of a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from lacuna_kernels.cuda.arena import BufferSpec
from lacuna_kernels.cuda.coordinates import (
    FREE,
    TABLES,
    SiteBuffer,
    check_candidates,
    output_sites,
    output_work,
    pack_geometry,
    table_slots,
)
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kernel_map import (
    KernelMap,
    Offsets,
    forward_map,
    inverse_map,
    map_shapes,
    map_work,
)
from lacuna_kernels.cuda.offset_slots import offset_slots, parts_of
from lacuna_kernels.cuda.steps import OVERFLOW, Buffers, Run, Work, Writer, sites_name
from lacuna_kernels.cuda.voxelize import PlacementBuffer, site_of_points
from lacuna_kernels.ops.sparse_conv import ONES, SparseConv
from lacuna_kernels.types import Geometry, Level, Triple

_LANES = 12
WORK = "work"
"""Name of the buffer int32 that the tasks of a lane have to work with."""


@dataclass(frozen=True, slots=True)
class Task:
    """Launches of a step that may be made beside those of others, what they read and what they make.

    work  numbers of int32 that they need in the buffer `WORK`, if they are in a lane
    """

    reads: Sequence[str]
    makes: Mapping[str, BufferSpec]
    run: Run
    work: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """Sites that are made at once, and then the kernel maps that lead from or to them."""

    sites: Sequence[Task]
    then: Sequence[Task]


@dataclass(frozen=True, slots=True)
class Front:
    """What has to be made before the convolutions of a grid.

    means   the features of its sites
    clear   the tables of all levels that are made of it
    own     kernel maps between its sites
    levels  all that are made of it
    stages  their sites: those that are made of the grid's, all at once, then those of others, one after the other
    """

    means: Task
    clear: Task
    own: Sequence[Task]
    levels: Sequence[Level]
    stages: Sequence[Stage]

    @classmethod
    def of(cls, writer: Writer, grid: Level, means: Task) -> "Front":
        """Collect it from the layers to come; `means` makes the features."""
        levels, maps = [[grid], list[Level]()], dict[str, tuple[Task, int]]()
        layers = [layer for layer in writer.layers if isinstance(layer.node, SparseConv)]
        for layer in (layer for layer in layers if writer.level(layer.output).grid == grid.name):
            node = layer.node
            assert isinstance(node, SparseConv)
            level_in, level_out = writer.level(node.inputs[0]), writer.level(layer.output)
            if node.mode in ("strided", "generative"):
                if source_of(level_out)[0] == grid:
                    levels[1].append(level_out)
                else:
                    levels.append([level_out])
            key = map_name(node, level_in, level_out)
            if key is not None and key not in maps:
                last = max(at for at, made in enumerate(levels) if level_in in made or level_out in made)
                maps[key] = _map(writer, key, node, level_in, level_out), last
        made = [level for stage in levels[1:] for level in stage]
        at_stage = [[task for task, after in maps.values() if after == at] for at in range(len(levels))]
        stages = [
            Stage([_sites(writer, level) for level in stage], after)
            for stage, after in zip(levels[1:], at_stage[1:], strict=True)
        ]
        return cls(means, _cleared(writer, made), at_stage[0], made, stages)


def write_front(writer: Writer, name: str, grid: Level, place: Task, means: Task) -> None:
    """Write the steps that make the sites of a grid; those of all levels, and maps; and features and maps of the grid.

    The levels are made beside what reads nothing but the grid: the first convolutions.

    place  makes the sites of the grid, and beside it tables are cleared
    """
    device, front = writer.device, Front.of(writer, grid, means)
    own = in_lanes(front.own, [f"{name}:lane"])
    lanes = [
        in_lanes(stage.then, [f"{name}:lane {at}.{lane}" for lane in range(_LANES)])
        for at, stage in enumerate(front.stages)
    ]

    def stage(at: int, b: Buffers) -> None:
        device.at_once([partial(task.run, b) for task in front.stages[at].sites])
        longest = [partial(stage, at + 1, b)] if at + 1 < len(front.stages) else []  # first, so that it begins first
        device.at_once([*longest, *(partial(lane.run, b) for lane in lanes[at])])

    placed, now = _at_once(device, [place, front.clear]), _at_once(device, [means, *own])
    writer.add(f"place {name}", placed.reads, placed.writes, placed.run)
    levels = [task for each, after in zip(front.stages, lanes, strict=True) for task in (*each.sites, *after)]
    if levels:
        counts = [sites_name(level, "count") for level in front.levels]
        writer.add_with(name, now, Work(_read(levels), _made(levels), partial(stage, 0)), counts)
    else:
        writer.add(name, now.reads, now.writes, now.run)


def _at_once(device: Device, tasks: Sequence[Task]) -> Work:
    some = [task for task in tasks if task.makes]
    return Work(_read(some), _made(some), lambda b: device.at_once([partial(task.run, b) for task in some]))


def _made(tasks: Sequence[Task]) -> dict[str, BufferSpec]:
    return {key: spec for task in tasks for key, spec in task.makes.items()}


def _read(tasks: Sequence[Task]) -> list[str]:
    """What tasks read that none of them makes."""
    made = _made(tasks)
    return [key for key in dict.fromkeys(key for task in tasks for key in task.reads) if key not in made]


def in_lanes(tasks: Sequence[Task], names: Sequence[str]) -> list[Task]:
    """Deal tasks out to lanes, one after another in each, which have one piece of memory to work with; none is empty.

    The longest come first, each to the lane that has the least to do.
    """
    lanes: list[list[Task]] = [[] for _ in names]
    for task in sorted(tasks, key=lambda task: -task.work):
        min(lanes, key=lambda lane: sum(other.work for other in lane)).append(task)
    return [_lane(lane, f"{name}:work") for lane, name in zip(lanes, names, strict=True) if lane]


def _lane(tasks: Sequence[Task], work: str) -> Task:
    length = max(1, *(task.work for task in tasks))

    def run(b: Buffers) -> None:
        for task in tasks:
            task.run({**b, WORK: b[work][: task.work]})

    return Task([key for task in tasks for key in task.reads], _made(tasks) | {work: ints(length)}, run)


def source_of(level: Level) -> tuple[Level, Geometry]:
    """The level that the sites of a level are made of, and how: its parent, unless both divide space into cells.

    Cells of cells are cells of the finest; the first site in one is the first in the other, so that the order of the
    sites is the same.
    """
    assert level.parent is not None and level.geometry is not None
    if not _are_cells(level):
        return level.parent, level.geometry
    source, stride = level.parent, level.geometry.stride
    while source.parent is not None and source.geometry is not None and _are_cells(source):
        x, y, z = source.geometry.stride
        source, stride = source.parent, (stride[0] * x, stride[1] * y, stride[2] * z)
    return source, Geometry(ONES, stride, (0, 0, 0), ONES, floor_sites=True)


def _are_cells(level: Level) -> bool:
    """Whether every site of the parent lies in one of this level, at its coordinates divided by the stride."""
    g = level.geometry
    if g is None or g.generative or level.spatial_shape is not None:
        return False
    return g.floor_sites or (g.kernel_size == g.stride and g.padding == (0, 0, 0) and g.dilation == ONES)


def _sites(writer: Writer, level: Level) -> Task:
    """The sites of a strided or generative convolution."""
    source, g = source_of(level)
    device, packed = writer.device, _geometry(writer, g, level.spatial_shape)
    room, work = writer.room.sites(source), f"{level.name}:work"
    check_candidates(room, prod(g.fan_out))

    def run(b: Buffers) -> None:
        output_sites(device, sites_in(b, source), sites_in(b, level), g, packed, b[work], b[OVERFLOW])

    specs = _parts_of_level(writer, level)
    made = {sites_name(level, what): specs[what] for what in ("coordinates", "cells", "offsets")}
    reads = [sites_name(level, "table"), *_found_by(source)]
    return Task(reads, made | {work: ints(output_work(room, prod(g.fan_out)))}, run)


def _cleared(writer: Writer, levels: Sequence[Level]) -> Task:
    """The tables of levels, with nothing in them."""
    tables = {sites_name(level, "table"): _parts_of_level(writer, level)["table"] for level in levels}

    def run(b: Buffers) -> None:
        for table in tables:
            b[table].fill_(FREE)

    return Task([], tables, run)


def map_name(node: SparseConv, level_in: Level, level_out: Level) -> str | None:
    """Name of the kernel map of a convolution; None for the identity."""
    if node.mode == "inverse":
        return f"map back from {level_in.name}"
    g = node.geometry
    if g.generative:
        return f"map of {level_out.name}"
    if node.mode == "submanifold" and g.volume == 1:
        return None
    return f"map from {level_in.name} to {level_out.name} {g.kernel_size} {g.stride} {g.padding} {g.dilation}"


def _map(writer: Writer, name: str, node: SparseConv, level_in: Level, level_out: Level) -> Task:
    g = level_in.geometry if node.mode == "inverse" else node.geometry
    assert g is not None
    device, held, capacity = writer.device, writer.weights, writer.room.sites(level_out)
    backward = node.mode == "inverse" or g.generative
    make, parts = (inverse_map, 1) if backward else (forward_map, parts_of(g, max(level_out.stride)))
    writer.map_parts[name] = parts
    slots = held.make(("slots", g, parts), lambda: held.upload(offset_slots(g, parts), torch.int32))
    offsets = Offsets(g, _geometry(writer, g, None), slots)

    def run(b: Buffers) -> None:
        sites = sites_in(b, level_in), sites_in(b, level_out)
        make(device, *sites, offsets, kernel_map_in(b, name), b[WORK])

    shapes = map_shapes(g.volume, capacity, parts)
    made = {f"{name}:{part}": BufferSpec(shape, torch.int32) for part, shape in shapes.items()}
    reads = [*_found_by(level_in), *_found_by(level_out)]
    return Task(reads, made, run, map_work(g.volume, capacity, parts))


def kernel_map_in(b: Buffers, name: str) -> KernelMap:
    """The kernel map of a name."""
    return KernelMap(*(b[part] for part in kernel_map_buffers(name)))


def kernel_map_buffers(name: str) -> list[str]:
    """Names of its buffers."""
    return [f"{name}:{part}" for part in map_shapes(1, 1)]


def row_of_point(writer: Writer, level: Level) -> str:
    """Name of the buffer int32 [points] with the site of a level that holds each point, made on first use."""
    grid, device = root(level), writer.device
    if level.parent is None:
        return f"{grid.name}:voxel_of_point"
    name = f"{level.name}:row_of_point"
    if writer.once(name):
        count = f"{writer.types[grid.name].points}:count"

        def run(b: Buffers) -> None:
            site_of_points(device, placement_in(b, grid), b[count], sites_in(b, level), level.stride, b[name])

        reads = [*placement_specs(grid, 0), *site_specs(writer, level)]
        writer.add(name, reads, {name: ints(writer.room.points)}, run)
    return name


def sites_in(b: Buffers, level: Level) -> SiteBuffer:
    """The sites of a level."""
    coordinates, count, offsets, table, cells = (
        b[sites_name(level, what)] for what in ("coordinates", "count", "offsets", "table", "cells")
    )
    return SiteBuffer(coordinates, count, offsets, table, cells)


def site_specs(writer: Writer, level: Level) -> dict[str, BufferSpec]:
    """Buffers of a level but for its count, which is a part of the status."""
    return {sites_name(level, what): spec for what, spec in _parts_of_level(writer, level).items()}


def _found_by(level: Level) -> list[str]:
    """Buffers that say which sites there are and find them."""
    return [sites_name(level, what) for what in ("coordinates", "table", "cells")]


def _parts_of_level(writer: Writer, level: Level) -> dict[str, BufferSpec]:
    sites = writer.room.sites(level)
    return {
        "coordinates": BufferSpec((sites, 4), torch.int32),
        "offsets": ints(writer.room.items + 1),
        "table": BufferSpec((TABLES, table_slots(sites)), torch.int32),
        "cells": BufferSpec((sites, 8), torch.int32),
    }


def placement_in(b: Buffers, grid: Level) -> PlacementBuffer:
    """Where the points of a grid went."""
    position, voxels, voxel_of_point = (b[name] for name in placement_specs(grid, 0))
    return PlacementBuffer(position, voxels, voxel_of_point)


def placement_specs(grid: Level, points: int) -> dict[str, BufferSpec]:
    """Buffers that say where the points of a grid went."""
    return {
        f"{grid.name}:position": BufferSpec((points, 3), torch.float32),
        f"{grid.name}:voxels": BufferSpec((points, 4), torch.int32),
        f"{grid.name}:voxel_of_point": ints(points),
    }


def _geometry(writer: Writer, geometry: Geometry, spatial_shape: Triple | None) -> Tensor:
    def upload() -> Tensor:
        return writer.weights.upload(pack_geometry(geometry, spatial_shape), torch.int32)

    return writer.weights.make(("geometry", geometry, spatial_shape), upload)


def root(level: Level) -> Level:
    """The finest level that a level was made of."""
    while level.parent is not None:
        level = level.parent
    return level


def ints(length: int) -> BufferSpec:
    """Room for int32 numbers."""
    return BufferSpec((length,), torch.int32)
