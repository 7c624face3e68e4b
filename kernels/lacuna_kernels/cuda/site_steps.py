"""Steps that make sites and kernel maps, and how other steps find them among the buffers of a plan."""

import torch
from torch import Tensor

from lacuna_kernels.cuda.arena import BufferSpec
from lacuna_kernels.cuda.coordinates import (
    SiteBuffer,
    check_candidates,
    output_sites,
    output_work,
    pack_geometry,
    table_slots,
)
from lacuna_kernels.cuda.kernel_map import KernelMap, forward_map, inverse_map, map_shapes, map_work, offset_bits
from lacuna_kernels.cuda.steps import OVERFLOW, Buffers, Writer, sites_name
from lacuna_kernels.cuda.voxelize import PlacementBuffer, site_of_points
from lacuna_kernels.ops.sparse_conv import SparseConv
from lacuna_kernels.types import Geometry, Level, Triple


def make_sites(writer: Writer, level_in: Level, level_out: Level) -> None:
    """The sites of a strided or generative convolution."""
    assert level_out.geometry is not None
    device, geometry = writer.device, _geometry(writer, level_out.geometry, level_out.spatial_shape)
    room_in, room_out = writer.room.sites(level_in), writer.room.sites(level_out)
    check_candidates(room_in, level_out.geometry.volume)
    work = f"{level_out.name}:work"

    def run(b: Buffers) -> None:
        output_sites(device, sites_in(b, level_in), sites_in(b, level_out), geometry, b[work], b[OVERFLOW])

    made = site_specs(writer, level_out) | {work: ints(output_work(room_in, room_out))}
    writer.add(f"sites of {level_out.name}", list(site_specs(writer, level_in)), made, run)


def kernel_map(writer: Writer, node: SparseConv, level_in: Level, level_out: Level) -> str | None:
    """Name of the kernel map, made on first use; None for the identity."""
    if node.mode == "inverse":
        assert level_in.geometry is not None
        return _map(writer, f"map back from {level_in.name}", level_in.geometry, level_in, level_out, backward=True)
    g = node.geometry
    if g.generative:
        return _map(writer, f"map of {level_out.name}", g, level_in, level_out, backward=True)
    if node.mode == "submanifold" and g.volume == 1:
        return None
    name = f"map from {level_in.name} to {level_out.name} {g.kernel_size} {g.stride} {g.padding} {g.dilation}"
    return _map(writer, name, g, level_in, level_out, backward=False)


def _map(writer: Writer, name: str, g: Geometry, level_in: Level, level_out: Level, *, backward: bool) -> str:
    if not writer.once(name):
        return name
    device, geometry, make = writer.device, _geometry(writer, g, None), inverse_map if backward else forward_map
    held = writer.weights
    bits = held.make(("bits", g.kernel_size), lambda: held.upload(offset_bits(g.kernel_size), torch.int32))
    capacity, work = writer.room.sites(level_out), f"{name}:work"

    def run(b: Buffers) -> None:
        sites = sites_in(b, level_in), sites_in(b, level_out)
        make(device, *sites, geometry, bits, kernel_map_in(b, name), b[work])

    made = {f"{name}:{part}": BufferSpec(shape, torch.int32) for part, shape in map_shapes(g.volume, capacity).items()}
    made[work] = ints(map_work(g.volume, capacity))
    writer.add(name, [*site_specs(writer, level_in), *site_specs(writer, level_out)], made, run)
    return name


def kernel_map_in(b: Buffers, name: str) -> KernelMap:
    """The kernel map of a name."""
    return KernelMap(b[f"{name}:rows"], b[f"{name}:order"], b[f"{name}:present"])


def kernel_map_buffers(name: str) -> list[str]:
    """Names of its buffers."""
    return [f"{name}:{part}" for part in ("rows", "order", "present")]


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
    coordinates, count, offsets, table = (
        b[sites_name(level, what)] for what in ("coordinates", "count", "offsets", "table")
    )
    return SiteBuffer(coordinates, count, offsets, table)


def site_specs(writer: Writer, level: Level) -> dict[str, BufferSpec]:
    """Buffers of a level but for its count, which is a part of the status."""
    sites = writer.room.sites(level)
    return {
        sites_name(level, "coordinates"): BufferSpec((sites, 4), torch.int32),
        sites_name(level, "offsets"): ints(writer.room.items + 1),
        sites_name(level, "table"): ints(table_slots(sites)),
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
