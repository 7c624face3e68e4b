"""What makes sites and kernel maps, and how steps find them among the buffers of a plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lacuna_kernels.cuda.arena import BufferSpec
from lacuna_kernels.cuda.coordinates import (
    FREE,
    TABLES,
    SiteBuffer,
    check_candidates,
    numbering_work,
    output_sites,
    pack_geometry,
    table_slots,
)
from lacuna_kernels.cuda.kernel_map import KernelMap, MapJob, Offsets, map_shapes, map_work
from lacuna_kernels.cuda.offset_slots import offset_slots, parts_of, regions_of
from lacuna_kernels.cuda.steps import OVERFLOW, Buffers, Writer, ints, sites_name
from lacuna_kernels.cuda.tasks import Task
from lacuna_kernels.cuda.tile_order import TileOrder, tiles_shape
from lacuna_kernels.cuda.voxelize import PlacementBuffer, site_of_points
from lacuna_kernels.ops.sparse_conv import ONES, SparseConv
from lacuna_kernels.types import Geometry, Level, Triple

_LEAST_OFFSETS, _MOST_ROWS = 16, 1 << 16
"""Of maps whose tiles are put in order: with fewer, or more rows, their convolutions would seldom gain by it."""


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


def is_dense(level: Level) -> bool:
    """Whether most sites have most neighbours: those that a strided convolution made of inputs that feed several."""
    g = level.geometry
    return g is not None and not g.generative and not g.floor_sites and max(g.fan_out) > 1


def sites_task(writer: Writer, level: Level) -> Task:
    """The sites of a strided or generative convolution."""
    source, g = source_of(level)
    device, packed = writer.device, _geometry(writer, g, level.spatial_shape)
    room, work, most = writer.room.sites(source), f"{level.name}:work", prod(g.fan_out)
    check_candidates(room, most)

    def run(b: Buffers) -> None:
        output_sites(device, sites_in(b, source), sites_in(b, level), g, packed, b[work], b[OVERFLOW])

    specs = _parts_of_level(writer, level)
    made = {sites_name(level, what): specs[what] for what in ("coordinates", "cells", "offsets")}
    reads = [sites_name(level, "table"), *_found_by(source)]
    return Task(reads, made | {work: ints(numbering_work(room * most))}, run)


def cleared_tables(writer: Writer, levels: Sequence[Level]) -> Task:
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


@dataclass(frozen=True, slots=True)
class TilesTask:
    """The tiles of a kernel map to be put in order, what is read for it and what it is made of."""

    reads: Sequence[str]
    makes: Mapping[str, BufferSpec]
    order: Callable[[Buffers], TileOrder]


@dataclass(frozen=True, slots=True)
class MapTask:
    """A kernel map to be made, what is read for it and what it is made of.

    work   numbers of int32 that are needed to work with
    job    how, with those
    tiles  how its tiles are put in order afterwards, if they are
    """

    reads: Sequence[str]
    makes: Mapping[str, BufferSpec]
    work: int
    job: Callable[[Buffers, Tensor], MapJob]
    tiles: TilesTask | None


def kernel_map_task(
    writer: Writer, name: str, node: SparseConv, level_in: Level, level_out: Level, *, told: bool
) -> MapTask:
    """The map of a convolution between two levels, of this name.

    told  whether any convolution may be told in which order to make its tiles
    """
    g = level_in.geometry if node.mode == "inverse" else node.geometry
    assert g is not None
    held, capacity = writer.weights, writer.room.sites(level_out)
    backward = node.mode == "inverse" or g.generative
    dense = node.mode == "submanifold" and is_dense(level_out)
    parts = 1 if backward else parts_of(g, max(level_out.stride), dense=dense)
    writer.map_parts[name] = parts
    regions = regions_of(g, capacity, dense=dense)
    slots = held.make(("slots", g, parts, dense), lambda: held.upload(offset_slots(g, parts, dense=dense), torch.int32))
    offsets = Offsets(g, _geometry(writer, g, None), slots)

    def job(b: Buffers, work: Tensor) -> MapJob:
        inputs, outputs = sites_in(b, level_in), sites_in(b, level_out)
        return MapJob(inputs, outputs, offsets, kernel_map_in(b, name), work, backward, regions)

    shapes = map_shapes(g.volume, capacity, parts)
    made = {f"{name}:{part}": BufferSpec(shape, torch.int32) for part, shape in shapes.items()}
    reads = [*_found_by(level_in), *_found_by(level_out)]
    in_order = told and g.volume >= _LEAST_OFFSETS and likely_rows(writer, level_out) <= _MOST_ROWS
    tiles = _tiles_task(name, level_out, capacity, parts) if in_order else None
    return MapTask(reads, made, map_work(g.volume, capacity, parts, regions), job, tiles)


def _tiles_task(name: str, level: Level, capacity: int, parts: int) -> TilesTask:
    made, reads = tiles_name(name), [f"{name}:present", f"{name}:ones", sites_name(level, "count")]

    def order(b: Buffers) -> TileOrder:
        present, ones, count = (b[key] for key in reads)
        return TileOrder(present, ones, b[made], count)

    return TilesTask(reads, {made: BufferSpec(tiles_shape(capacity, parts), torch.int32)}, order)


def likely_rows(writer: Writer, level: Level) -> int:
    """How many sites there will be, about.

    The points by the stride: of 123 thousand points of a LiDAR scan, voxels of 5 cm and then of twice the size are 92,
    60, 32, 14 and 6 thousand. On dense levels half as many more: of 100 thousand voxels 140, 75 and 23 thousand.
    """
    rows = rows_by_stride(writer, level)
    return min(rows * 3 // 2, writer.room.sites(level)) if is_dense(level) else rows


def rows_by_stride(writer: Writer, level: Level) -> int:
    """The points that there is room for by the stride, as if no level were dense."""
    return max(1, min(writer.room.points // max(level.stride), writer.room.sites(level)))


def kernel_map_in(b: Buffers, name: str, *, tiles: bool = False) -> KernelMap:
    """The kernel map of a name, with the order of its tiles or without."""
    return KernelMap(*(b[part] for part in kernel_map_buffers(name, tiles=tiles)))


def kernel_map_buffers(name: str, *, tiles: bool = False) -> list[str]:
    """Names of its buffers."""
    return [*(f"{name}:{part}" for part in map_shapes(1, 1)), *([tiles_name(name)] if tiles else [])]


def tiles_name(name: str) -> str:
    """Name of the buffer with the order of a map's tiles."""
    return f"{name}:tiles"


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
