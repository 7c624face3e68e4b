"""Steps of the ops on points and sites."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, repeat

import torch
from torch import Tensor

from lacuna_kernels.cuda.arena import BufferSpec
from lacuna_kernels.cuda.devoxelize import devoxelize_nearest, devoxelize_trilinear
from lacuna_kernels.cuda.front_steps import write_front
from lacuna_kernels.cuda.fusion import GAPLESS, Layer
from lacuna_kernels.cuda.global_pool import global_pool as launch_global_pool
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.cuda.row_means import row_means, row_means_work
from lacuna_kernels.cuda.site_steps import (
    kernel_map_buffers,
    kernel_map_in,
    likely_rows,
    map_name,
    placement_in,
    placement_specs,
    root,
    row_of_point,
    rows_by_stride,
    site_specs,
    sites_in,
    tiles_name,
)
from lacuna_kernels.cuda.sparse_conv import PROGRESS, PackedWeight, are_whole_pieces, pack_weight, part_sums
from lacuna_kernels.cuda.sparse_conv import sparse_conv as launch_sparse_conv
from lacuna_kernels.cuda.sparse_conv_choice import ConvShape, candidates
from lacuna_kernels.cuda.sparse_conv_hopper import ResidentTile, WgmmaTile, piece_of
from lacuna_kernels.cuda.sparse_conv_tiles import Tile
from lacuna_kernels.cuda.sparse_to_bev import sparse_to_bev as launch_sparse_to_bev
from lacuna_kernels.cuda.steps import OVERFLOW, Buffers, Writer, ints, sites_name
from lacuna_kernels.cuda.tasks import Task
from lacuna_kernels.cuda.tile_table import Group, MapKind
from lacuna_kernels.cuda.voxelize import Grid, PointBuffer, placing_work, voxels_of_points
from lacuna_kernels.cuda.voxelize import voxelize as launch_voxelize
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.devoxelize import Devoxelize
from lacuna_kernels.ops.global_pool import GlobalPool
from lacuna_kernels.ops.sparse_conv import SparseConv
from lacuna_kernels.ops.voxelize import Voxelize
from lacuna_kernels.types import Axis, Level


def voxelize(writer: Writer, layer: Layer) -> None:
    """Place the points, number the voxels, and reduce the points of each; make all other sites, and kernel maps."""
    node, level, device = layer.node, writer.level(layer.output), writer.device
    assert isinstance(node, Voxelize)
    (cloud,) = node.inputs
    grid, points = Grid(node.origin, node.voxel_size_m, node.cells), writer.room.points
    given = [cloud, f"{cloud}:count", f"{cloud}:offsets"]
    made = placement_specs(level, points) | site_specs(writer, level)
    work, means = f"{node.name}:work", f"{node.name}:means"
    features = writer.output(layer)[layer.output]
    gapless = any(isinstance(other.node, GAPLESS) and layer.output in other.inputs for other in writer.layers)
    if features.dtype.itemsize == 2 and not gapless:  # then convolutions can read whole pieces
        padding = -features.shape[1] % piece_of(features.shape[1])
        features, writer.padding[layer.output] = replace(features, padding=padding), padding

    def clouds(b: Buffers) -> PointBuffer:
        return PointBuffer(b[cloud], b[f"{cloud}:count"], b[f"{cloud}:offsets"])

    def place(b: Buffers) -> None:
        launch_voxelize(device, clouds(b), grid, placement_in(b, level), sites_in(b, level), b[work], b[OVERFLOW])

    def reduce(b: Buffers) -> None:
        placement, sites = placement_in(b, level), sites_in(b, level)
        voxels_of_points(device, clouds(b), placement, sites, b[work])
        y, count, first = b[layer.output], b[f"{cloud}:count"], node.reduce == "first"
        given = (b[cloud], placement.voxel_of_point, count, y, sites.count, b[means])
        row_means(device, *given, first_only=first, padding=features.padding)

    placed = Task(given, made | {work: ints(placing_work(points))}, place)
    scratch = {means: ints(row_means_work(points, writer.room.sites(level)))}
    reduced = Task([*given, *placed.makes], {layer.output: features} | scratch, reduce)
    write_front(writer, layer.output, level, placed, reduced)


def sparse_conv(writer: Writer, layer: Layer) -> None:
    """y = f(bias + residual + sum over offsets k of x[map[k]] @ weight[k] + shortcut @ its weight)."""
    node = layer.node
    assert isinstance(node, SparseConv)
    key = map_name(node, writer.level(node.inputs[0]), writer.level(layer.output))
    _convolution(writer, layer, key, _tile(writer, layer, key))


def linear(writer: Writer, layer: Layer) -> bool:
    """y = f(x @ weight.T + bias + residual), as a convolution of one offset: if it is on sites, and one for Hopper.

    Returns whether it is.
    """
    if writer.types[layer.output].axis is not Axis.SITE:
        return False
    one = replace(layer, weights={**layer.weights, "weight": layer.weights["weight"].T[None]})
    tile = candidates(_shape(writer, one, single=True, split=False), writer.device.limits)[0]
    if tile.early:
        _convolution(writer, one, None, tile)
    return tile.early


def _convolution(writer: Writer, layer: Layer, key: str | None, tile: Tile) -> None:
    """Through the kernel map of a name, or without one if each row reads itself alone."""
    device, level = writer.device, writer.level(layer.output)
    x, residual, shortcut = _sources(writer, layer)
    weight, bias = packed(writer, layer, tile), writer.weights.bias(layer)
    count = sites_name(level, "count")
    given = [name for name in (x, residual, shortcut) if name is not None]
    parts = 1 if key is None else writer.map_parts[key]
    tiles = key is not None and tiles_name(key) in writer.made and _ends_sooner(writer, weight, level, parts)
    reads = [*given, *([] if key is None else kernel_map_buffers(key, tiles=tiles))]
    # With an order a block for each tile; without, fewer on dense levels: a block with a second tile looks its rows up
    # before it writes the first.
    likely = likely_rows(writer, level) if tiles else rows_by_stride(writer, level)
    first, joined = writer.once(f"convolution of {level.grid}"), writer.join_before(reads)
    settled = not (first or joined)  # those come right after what makes their map
    sums, scratch = f"{layer.output}:sums", dict[str, BufferSpec]()
    progress: Iterator[Tensor | None] = repeat(None)
    if parts > 1:
        scratch[sums] = BufferSpec(part_sums(parts, writer.room.sites(level), weight), torch.float32)
        # Of this plan, as another may run meanwhile; in turns, as tuning launches a layer again before it has ended.
        progress = cycle(torch.zeros(2, PROGRESS, dtype=torch.int32).to(writer.weights.place))

    def run(b: Buffers) -> None:
        read = None if key is None else kernel_map_in(b, key, tiles=tiles)
        launch_sparse_conv(
            device,
            *(b[x], weight, read, b[count], b[layer.output]),
            bias=bias,
            residual=None if residual is None else b[residual],
            shortcut=None if shortcut is None else b[shortcut],
            activation=layer.activation,
            slope=layer.slope,
            settled=settled,
            likely=likely,
            sums=b[sums] if parts > 1 else None,
            progress=next(progress),
        )

    writer.add(layer.output, reads, _output(writer, layer, tile) | scratch, run)


_FEW_TURNS, _FEW_TURNS_IN_PARTS = 3, 2
"""Tiles one after another, up to which it pays to make the longest first."""


def _ends_sooner(writer: Writer, weight: PackedWeight, level: Level, parts: int) -> bool:
    """Whether a convolution ends sooner if its longest tiles come first: where each place makes only a few.

    Where it makes more, those that are made at the same time had better read the same weights, and rows that lie close.
    """
    tile, multiprocessors = weight.tile, writer.device.limits.multiprocessors
    if not isinstance(tile, WgmmaTile):
        return False
    rows, likely = writer.room.sites(level), likely_rows(writer, level)
    tiles = tile.grid(rows, likely, weight.out_channels, parts, multiprocessors)
    return tiles <= (_FEW_TURNS_IN_PARTS if parts > 1 else _FEW_TURNS) * tile.blocks * multiprocessors


def _output(writer: Writer, layer: Layer, tile: Tile) -> dict[str, BufferSpec]:
    """Room for a convolution's output: fp32, as the host gets it, if no layer reads it and the tile can."""
    read = any(layer.output in other.inputs for other in writer.layers) or layer.output in writer.parts
    if read or not isinstance(tile, ResidentTile):
        return writer.output(layer)
    return {layer.output: writer.spec(layer.output, torch.float32)}


def _sources(writer: Writer, layer: Layer) -> tuple[str, str | None, str | None]:
    """Names of the buffers with the input, the residual and the shortcut, in the layer's precision."""
    dtype = DTYPES[layer.precision]
    x = writer.converted(layer.node.inputs[0], dtype)
    residual, shortcut = (
        None if name is None else writer.converted(name, dtype) for name in (layer.residual, layer.shortcut)
    )
    return x, residual, shortcut


def packed(writer: Writer, layer: Layer, tile: Tile, beside: str = "shortcut") -> PackedWeight:
    """The layer's weight for a tile, and after it that of its shortcut, called `beside`, if it has one."""
    weight, shortcut = layer.weights["weight"], layer.weights.get(beside)
    (volume, ci, co), dtype = weight.shape, DTYPES[layer.precision]

    def pack() -> Tensor:
        return writer.weights.upload(pack_weight(weight, dtype, tile, shortcut).data, dtype)

    data = writer.weights.make((layer.output, "packed", tile.packing), pack)
    return PackedWeight(data, volume, ci, co, tile, 0 if shortcut is None else len(shortcut))


def _tile(writer: Writer, layer: Layer, key: str | None) -> Tile:
    """The tile that was measured best for convolutions of the layer's group, or else that of the rule."""
    node, volume = layer.node, len(layer.weights["weight"])
    assert isinstance(node, SparseConv)
    undone = writer.level(node.inputs[0]).geometry if node.mode == "inverse" else node.geometry
    assert undone is not None
    apart = undone.kernel_size == undone.stride and node.mode in ("inverse", "generative")
    kind: MapKind = "identity" if key is None else node.mode
    split = key is not None and writer.map_parts[key] > 1
    group = Group(_shape(writer, layer, single=volume == 1 or apart, split=split), kind)
    writer.convolutions[layer.output] = group
    limits = writer.device.limits
    return writer.tuned.tiles.tile(group, limits) or candidates(group.shape, limits)[0]


def _shape(writer: Writer, layer: Layer, *, single: bool, split: bool) -> ConvShape:
    """What the choice of a tile depends on; `single`: each row has one offset, `split`: they are in several parts."""
    (volume, ci, co), level, dtype = layer.weights["weight"].shape, writer.level(layer.output), DTYPES[layer.precision]
    x, _, shortcut = _sources(writer, layer)
    aligned = are_aligned(writer, [x] if shortcut is None else [x, shortcut], dtype)
    rows, beside = likely_rows(writer, level), len(layer.weights.get("shortcut", ()))
    tf32 = layer.precision is Precision.TF32
    given = (ci, co, dtype, aligned, rows, single, beside, max(level.stride), split, tf32)
    return ConvShape(*given, volume=volume, readable=_is_readable(writer, x))


def are_aligned(writer: Writer, names: Sequence[str], dtype: torch.dtype) -> bool:
    """Whether 16 bytes of all these values can be copied at a time, wherever they lie."""
    return all(are_whole_pieces(*_columns(writer, name), dtype=dtype) for name in names)


def _is_readable(writer: Writer, name: str) -> bool:
    """Whether a value's channels, and zeros that follow them, can be read as a ResidentTile does, wherever it lies."""
    channels, start, pitch = _columns(writer, name)
    return not any(number % piece_of(channels) for number in (channels + writer.padding.get(name, 0), start, pitch))


def _columns(writer: Writer, name: str) -> tuple[int, int, int]:
    """Where a value lies in rows of memory, in elements: its channels, where they begin, and how far apart rows are."""
    part, channels = writer.parts.get(name), writer.types[name.partition(":")[0]].channels
    if part is not None:
        return channels, part.start, writer.types[part.whole].channels
    return channels, 0, channels + writer.padding.get(name, 0)


def devoxelize(writer: Writer, layer: Layer) -> None:
    """Features of sites at the points."""
    node, device = layer.node, writer.device
    assert isinstance(node, Devoxelize)
    level, grid = writer.level(node.inputs[0]), writer.level(node.inputs[1])
    x, count = writer.converted(node.inputs[0], DTYPES[layer.precision]), writer.count_of(layer.output)

    def run(b: Buffers) -> None:
        y, placement = b[layer.output], placement_in(b, grid)
        if node.mode == "nearest":
            devoxelize_nearest(device, b[x], placement, b[count], y)
        else:
            devoxelize_trilinear(device, b[x], placement, sites_in(b, level), level.stride, b[count], y)

    reads = [x, *site_specs(writer, level), *placement_specs(grid, 0)]
    writer.add(layer.output, reads, writer.output(layer), run)


def point_to_voxel(writer: Writer, layer: Layer) -> None:
    """Means of the features of the points of each site."""
    x, level, device = layer.node.inputs[0], writer.level(layer.output), writer.device
    grid, points, count = root(level), writer.room.points, writer.count_of(x)
    rows, means = row_of_point(writer, level), f"{layer.output}:means"

    def run(b: Buffers) -> None:
        row_means(device, b[x], b[rows], b[count], b[layer.output], b[sites_name(level, "count")], b[means])

    scratch = {means: ints(row_means_work(points, writer.room.sites(level)))}
    writer.add(layer.output, [x, rows, *placement_specs(grid, 0)], writer.output(layer) | scratch, run)


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
        launch_sparse_to_bev(device, b[x], sites_in(b, level), shape, b[layer.output])

    writer.add(layer.output, [x, *site_specs(writer, level)], writer.output(layer), run)
