"""Steps of the ops on points and sites: coordinates, kernel maps, and the features that follow them."""

from dataclasses import replace

import torch
from torch import Tensor

from lacuna_kernels.cuda.arena import BufferSpec
from lacuna_kernels.cuda.coordinates import (
    SiteBuffer,
    check_candidates,
    pack_geometry,
    strided_sites,
    strided_work,
    table_slots,
)
from lacuna_kernels.cuda.devoxelize import devoxelize_nearest, devoxelize_trilinear
from lacuna_kernels.cuda.fusion import Layer
from lacuna_kernels.cuda.global_pool import global_pool as launch_global_pool
from lacuna_kernels.cuda.kernel_map import KernelMap, forward_map, inverse_map, map_shapes
from lacuna_kernels.cuda.row_means import row_means, row_means_work
from lacuna_kernels.cuda.sparse_conv import PackedWeight, pack_weight
from lacuna_kernels.cuda.sparse_conv import sparse_conv as launch_sparse_conv
from lacuna_kernels.cuda.sparse_to_bev import sparse_to_bev as launch_sparse_to_bev
from lacuna_kernels.cuda.steps import DTYPES, OVERFLOW, Buffers, Writer, sites_name
from lacuna_kernels.cuda.voxelize import Grid, PlacementBuffer, PointBuffer, site_of_points, voxelize_work
from lacuna_kernels.cuda.voxelize import voxelize as launch_voxelize
from lacuna_kernels.ops.devoxelize import Devoxelize
from lacuna_kernels.ops.global_pool import GlobalPool
from lacuna_kernels.ops.sparse_conv import SparseConv
from lacuna_kernels.ops.voxelize import Voxelize
from lacuna_kernels.types import Axis, Geometry, Level, Triple


def voxelize(writer: Writer, layer: Layer) -> None:
    """Place the points, number the voxels, and reduce the points of each."""
    node, level, device = layer.node, writer.level(layer.output), writer.device
    assert isinstance(node, Voxelize)
    (cloud,) = node.inputs
    grid, points = Grid(node.origin, node.voxel_size_m, node.cells), writer.room.points
    given = [cloud, f"{cloud}:count", f"{cloud}:offsets"]
    made = _placement_specs(level, points) | _site_specs(writer, level)
    work, means = f"{node.name}:work", f"{node.name}:means"
    sites = writer.room.sites(level)

    def place(b: Buffers) -> None:
        clouds = PointBuffer(b[cloud], b[f"{cloud}:count"], b[f"{cloud}:offsets"])
        launch_voxelize(device, clouds, grid, _placement(b, level), _sites(b, level), b[work], b[OVERFLOW])

    def reduce(b: Buffers) -> None:
        row_of_point, count, y = _placement(b, level).voxel_of_point, b[f"{cloud}:count"], b[layer.output]
        rows, first = b[sites_name(level, "count")], node.reduce == "first"
        row_means(device, b[cloud], row_of_point, count, y, rows, b[means], first_only=first)

    writer.add(f"place {node.name}", given, made | {work: _ints(voxelize_work(points, table_slots(sites)))}, place)
    scratch = {means: _ints(row_means_work(points, sites))}
    writer.add(layer.output, [*given, *made], writer.output(layer) | scratch, reduce)


def sparse_conv(writer: Writer, layer: Layer) -> None:
    """y = f(sum over offsets k of x[map[k]] @ weight[k] + bias + residual)."""
    node, device, dtype = layer.node, writer.device, DTYPES[layer.precision]
    assert isinstance(node, SparseConv)
    level_in, level_out = writer.level(node.inputs[0]), writer.level(layer.output)
    if node.mode == "strided":
        _make_sites(writer, level_in, level_out)
    key = _map_key(writer, node, level_in, level_out)
    weight = writer.weights.make((layer.output, "packed"), lambda: _packed(writer, layer, dtype))
    bias = writer.weights.bias(layer)
    x, *residual = [writer.converted(name, dtype) for name in layer.inputs]
    count = sites_name(level_out, "count")

    def run(b: Buffers) -> None:
        kernel_map = None if key is None else KernelMap(b[f"{key}:rows"], b[f"{key}:present"])
        launch_sparse_conv(
            device,
            *(b[x], weight, kernel_map, b[count], b[layer.output]),
            bias=bias,
            residual=b[residual[0]] if residual else None,
            activation=layer.activation,
            slope=layer.slope,
        )

    map_reads = [] if key is None else [f"{key}:rows", f"{key}:present"]
    writer.add(layer.output, [x, *residual, *map_reads], writer.output(layer), run)


def _packed(writer: Writer, layer: Layer, dtype: torch.dtype) -> PackedWeight:
    packed = pack_weight(layer.weights["weight"], dtype)
    return replace(packed, data=writer.weights.upload(packed.data, dtype))


def _make_sites(writer: Writer, level_in: Level, level_out: Level) -> None:
    """The sites of a strided convolution."""
    assert level_out.geometry is not None
    device, geometry = writer.device, _geometry(writer, level_out.geometry, level_out.spatial_shape)
    room_in, room_out = writer.room.sites(level_in), writer.room.sites(level_out)
    check_candidates(room_in, level_out.geometry.volume)
    work = f"{level_out.name}:work"

    def run(b: Buffers) -> None:
        strided_sites(device, _sites(b, level_in), _sites(b, level_out), geometry, b[work], b[OVERFLOW])

    made = _site_specs(writer, level_out) | {work: _ints(strided_work(room_in, room_out))}
    writer.add(f"sites of {level_out.name}", list(_site_specs(writer, level_in)), made, run)


def _map_key(writer: Writer, node: SparseConv, level_in: Level, level_out: Level) -> str | None:
    """Name of the kernel map, made on first use; None for the identity."""
    if node.mode == "inverse":
        assert level_in.geometry is not None
        return _map(writer, f"map back from {level_in.name}", level_in.geometry, level_in, level_out, backward=True)
    g = node.geometry
    if node.mode == "submanifold" and g.volume == 1:
        return None
    name = f"map to {level_out.name} {g.kernel_size} {g.stride} {g.padding} {g.dilation}"
    return _map(writer, name, g, level_in, level_out, backward=False)


def _map(writer: Writer, name: str, g: Geometry, level_in: Level, level_out: Level, *, backward: bool) -> str:
    if not writer.once(name):
        return name
    device, geometry, make = writer.device, _geometry(writer, g, None), inverse_map if backward else forward_map

    def run(b: Buffers) -> None:
        result = KernelMap(b[f"{name}:rows"], b[f"{name}:present"])
        make(device, _sites(b, level_in), _sites(b, level_out), geometry, result)

    rows, present = map_shapes(g.volume, writer.room.sites(level_out))
    made = {f"{name}:rows": BufferSpec(rows, torch.int32), f"{name}:present": BufferSpec(present, torch.int32)}
    writer.add(name, [*_site_specs(writer, level_in), *_site_specs(writer, level_out)], made, run)
    return name


def devoxelize(writer: Writer, layer: Layer) -> None:
    """Features of sites at the points."""
    node, device = layer.node, writer.device
    assert isinstance(node, Devoxelize)
    level, grid = writer.level(node.inputs[0]), writer.level(node.inputs[1])
    x, count = writer.converted(node.inputs[0], DTYPES[layer.precision]), writer.count_of(layer.output)

    def run(b: Buffers) -> None:
        y, placement = b[layer.output], _placement(b, grid)
        if node.mode == "nearest":
            devoxelize_nearest(device, b[x], placement, b[count], y)
        else:
            devoxelize_trilinear(device, b[x], placement, _sites(b, level), level.stride, b[count], y)

    reads = [x, *_site_specs(writer, level), *_placement_specs(grid, 0)]
    writer.add(layer.output, reads, writer.output(layer), run)


def point_to_voxel(writer: Writer, layer: Layer) -> None:
    """Means of the features of the points of each site."""
    x, level, device = layer.node.inputs[0], writer.level(layer.output), writer.device
    grid, points, count = _root(level), writer.room.points, writer.count_of(x)
    rows, means = _row_of_point(writer, level), f"{layer.output}:means"

    def run(b: Buffers) -> None:
        row_means(device, b[x], b[rows], b[count], b[layer.output], b[sites_name(level, "count")], b[means])

    scratch = {means: _ints(row_means_work(points, writer.room.sites(level)))}
    writer.add(layer.output, [x, rows, *_placement_specs(grid, 0)], writer.output(layer) | scratch, run)


def _row_of_point(writer: Writer, level: Level) -> str:
    """Name of the buffer int32 [points] with the site of a level that holds each point, made on first use."""
    grid, device = _root(level), writer.device
    if level.parent is None:
        return f"{grid.name}:voxel_of_point"
    name = f"{level.name}:row_of_point"
    if writer.once(name):
        count = f"{writer.types[grid.name].points}:count"

        def run(b: Buffers) -> None:
            site_of_points(device, _placement(b, grid), b[count], _sites(b, level), level.stride, b[name])

        reads = [*_placement_specs(grid, 0), *_site_specs(writer, level)]
        writer.add(name, reads, {name: _ints(writer.room.points)}, run)
    return name


def global_pool(writer: Writer, layer: Layer) -> None:
    """One row a cloud."""
    node, device = layer.node, writer.device
    assert isinstance(node, GlobalPool)
    kind = writer.types[node.inputs[0]]
    x = writer.converted(node.inputs[0], DTYPES[layer.precision])
    offsets = (
        f"{kind.points}:offsets" if kind.axis is Axis.POINT else sites_name(writer.level(node.inputs[0]), "offsets")
    )

    def run(b: Buffers) -> None:
        launch_global_pool(device, b[x], b[offsets], b[layer.output], node.mode)

    writer.add(layer.output, [x, offsets], writer.output(layer), run)


def sparse_to_bev(writer: Writer, layer: Layer) -> None:
    """Image of the sites."""
    level, device = writer.level(layer.node.inputs[0]), writer.device
    x, shape = writer.converted(layer.node.inputs[0], DTYPES[layer.precision]), level.spatial_shape
    assert shape is not None

    def run(b: Buffers) -> None:
        launch_sparse_to_bev(device, b[x], _sites(b, level), shape, b[layer.output])

    writer.add(layer.output, [x, *_site_specs(writer, level)], writer.output(layer), run)


def _sites(b: Buffers, level: Level) -> SiteBuffer:
    coordinates, count, offsets, table = (
        b[sites_name(level, what)] for what in ("coordinates", "count", "offsets", "table")
    )
    return SiteBuffer(coordinates, count, offsets, table)


def _site_specs(writer: Writer, level: Level) -> dict[str, BufferSpec]:
    """Buffers of a level but for its count, which is a part of the status."""
    sites = writer.room.sites(level)
    return {
        sites_name(level, "coordinates"): BufferSpec((sites, 4), torch.int32),
        sites_name(level, "offsets"): _ints(writer.room.items + 1),
        sites_name(level, "table"): _ints(table_slots(sites)),
    }


def _placement(b: Buffers, grid: Level) -> PlacementBuffer:
    position, voxels, voxel_of_point = (b[name] for name in _placement_specs(grid, 0))
    return PlacementBuffer(position, voxels, voxel_of_point)


def _placement_specs(grid: Level, points: int) -> dict[str, BufferSpec]:
    return {
        f"{grid.name}:position": BufferSpec((points, 3), torch.float32),
        f"{grid.name}:voxels": BufferSpec((points, 4), torch.int32),
        f"{grid.name}:voxel_of_point": _ints(points),
    }


def _geometry(writer: Writer, geometry: Geometry, spatial_shape: Triple | None) -> Tensor:
    def upload() -> Tensor:
        return writer.weights.upload(pack_geometry(geometry, spatial_shape), torch.int32)

    return writer.weights.make(("geometry", geometry, spatial_shape), upload)


def _root(level: Level) -> Level:
    while level.parent is not None:
        level = level.parent
    return level


def _ints(length: int) -> BufferSpec:
    return BufferSpec((length,), torch.int32)
