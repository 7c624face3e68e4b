"""Clouds, sites and maps on a GPU, with room to spare that is filled with nonsense, so that nothing may rely on it.

`PLACE` is the CPU where kernels are simulated.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from math import prod
from operator import or_

import torch
from torch import Tensor

from lacuna_kernels.cuda.coordinates import (
    FREE,
    TABLES,
    SiteBuffer,
    numbering_work,
    output_sites,
    pack_geometry,
    table_slots,
)
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kernel_map import (
    KernelMap,
    MapJob,
    Offsets,
    make_maps,
    map_work,
)
from lacuna_kernels.cuda.offset_slots import offset_slots
from lacuna_kernels.cuda.sparse_conv import PROGRESS, PackedWeight, part_sums
from lacuna_kernels.cuda.tile_order import TILE_SIZES, TileOrder, order_tiles, tiles_shape
from lacuna_kernels.cuda.voxelize import Grid, PlacementBuffer, PointBuffer, placing_work, voxelize, voxels_of_points
from lacuna_kernels.ops import coordinates as reference
from lacuna_kernels.ops.context import Context, Placement
from lacuna_kernels.ops.sparse_conv import gather_multiply_add
from lacuna_kernels.ops.voxelize import Voxelize
from lacuna_kernels.types import Geometry, Triple, Value

PLACE = "cuda"
SPARE = 77
SPARE_ITEMS = 3
NONSENSE = 0x7B7B7B7B
ONCE = Geometry((1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), floor_sites=True)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
GRIDS = [
    {"voxel_size_m": (0.5, 0.5, 0.5)},
    {"voxel_size_m": (0.3, 0.7, 1.1), "origin_m": (1.5, -2.5, 0.25), "reduce": "first"},
    {"voxel_size_m": (0.25, 0.25, 0.5), "range_m": (-2.0, -1.0, -3.0, 3.0, 4.0, 1.0)},
    {"voxel_size_m": (1e-3, 1e-3, 1e-3)},
]
CUBE = reference.submanifold_geometry((3, 3, 3), (1, 1, 1))
SUBMANIFOLD = [
    reference.submanifold_geometry((3, 3, 3), (1, 1, 1)),
    reference.submanifold_geometry((1, 3, 5), (2, 1, 3)),
    reference.submanifold_geometry((7, 7, 7), (1, 1, 1)),
    reference.submanifold_geometry((1, 1, 1), (1, 1, 1)),
]
STRIDED = [
    Geometry((2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1)),
    Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    Geometry((3, 3, 3), (2, 2, 2), (0, 1, 1), (1, 1, 1)),
    Geometry((3, 3, 3), (2, 2, 2), (2, 3, 0), (1, 1, 1)),
    Geometry((3, 1, 1), (2, 1, 1), (0, 0, 0), (1, 1, 1)),
    Geometry((2, 3, 2), (3, 4, 5), (1, 0, 2), (2, 1, 3)),
    Geometry((3, 3, 3), (1, 1, 1), (0, 2, 1), (1, 1, 1)),
    Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), floor_sites=True),
    Geometry((2, 2, 2), (2, 3, 1), (0, 0, 0), (1, 1, 1), floor_sites=True),
]
GENERATIVE = [
    Geometry((2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1), generative=True),
    Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), generative=True),
    Geometry((3, 1, 2), (1, 4, 3), (0, 2, 1), (2, 1, 3), generative=True),
    Geometry((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), generative=True),
]


def nonsense(*shape: int, device: str = "cpu") -> Tensor:
    """What a kernel should write over: int32."""
    return torch.full(shape, NONSENSE, dtype=torch.int32, device=device)


def ints(*shape: int) -> Tensor:
    """Nonsense on the device."""
    return nonsense(*shape, device=PLACE)


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """NaN where a kernel should write."""
    return torch.full(shape, torch.nan, dtype=dtype, device=PLACE)


def flag() -> Tensor:
    """An overflow flag, down."""
    return torch.zeros(1, dtype=torch.int32, device=PLACE)


def counted(number: int) -> Tensor:
    """A count on the device."""
    return torch.tensor([number], dtype=torch.int32, device=PLACE)


def cloud_on_device(cloud: Value, spare: int = SPARE, spare_items: int = SPARE_ITEMS) -> PointBuffer:
    assert cloud.offsets is not None
    n = len(cloud.data)
    points = poisoned(n + spare, cloud.data.shape[1])
    points[:n] = cloud.data.to(PLACE)
    offsets = torch.cat([cloud.offsets, cloud.offsets.new_full((spare_items,), n)]).int().to(PLACE)
    return PointBuffer(points, counted(n), offsets)


def room_for_sites(capacity: int, items: int) -> SiteBuffer:
    table = ints(TABLES, table_slots(capacity))
    return SiteBuffer(ints(capacity, 4), ints(1), ints(items + SPARE_ITEMS + 1), table, ints(capacity, 8))


def room_for_placement(points: int) -> PlacementBuffer:
    return PlacementBuffer(poisoned(points, 3), ints(points, 4), ints(points))


def voxelized(
    device: Device, cloud: PointBuffer, grid: Grid, capacity: int | None = None
) -> tuple[PlacementBuffer, SiteBuffer, Tensor]:
    """Sites of a cloud, where its points went, and the overflow flag."""
    points = len(cloud.points)
    sites = room_for_sites(points if capacity is None else capacity, len(cloud.offsets) - 1 - SPARE_ITEMS)
    placement, overflow = room_for_placement(points), flag()
    work = ints(placing_work(points))
    voxelize(device, cloud, grid, placement, sites, work, overflow)
    voxels_of_points(device, cloud, placement, sites, work)
    return placement, sites, overflow


def strided(
    device: Device, inputs: SiteBuffer, geometry: Geometry, shape: Triple | None, capacity: int
) -> tuple[SiteBuffer, Tensor]:
    """Output sites of a strided convolution, and the overflow flag."""
    sites, overflow = room_for_sites(capacity, len(inputs.offsets) - 1 - SPARE_ITEMS), flag()
    work = ints(numbering_work(inputs.capacity * prod(geometry.fan_out)))
    sites.table.fill_(FREE)
    output_sites(device, inputs, sites, geometry, pack_geometry(geometry, shape).to(PLACE), work, overflow)
    return sites, overflow


def sites_on_device(device: Device, coordinates: Tensor, items: int) -> SiteBuffer:
    """A given set of sites, int32 [n, 4] sorted by item."""
    n = len(coordinates)
    room = ints(n + SPARE, 4)
    room[:n] = coordinates.to(PLACE)
    given = SiteBuffer(room, counted(n), ints(items + SPARE_ITEMS + 1), ints(TABLES, 4), ints(1, 8))
    return strided(device, given, ONCE, None, n + SPARE)[0]


def mapped(
    device: Device,
    inputs: SiteBuffer,
    outputs: SiteBuffer,
    geometry: Geometry,
    *,
    backward: bool = False,
    parts: int = 1,
    dense: bool = False,
    regions: int = 1,
) -> KernelMap:
    """The kernel map of a convolution, or of the one that undoes it (inputs coarse, outputs fine)."""
    result = KernelMap.made(geometry.volume, outputs.capacity, ints, parts)
    work = ints(map_work(geometry.volume, outputs.capacity, parts, regions))
    offsets = offsets_on_device(geometry, parts, dense=dense)
    make_maps(device, [MapJob(inputs, outputs, offsets, result, work, backward, regions)])
    tiles = ints(*tiles_shape(outputs.capacity, parts))
    order_tiles(device, [TileOrder(result.present, result.ones, tiles, outputs.count)])
    return replace(result, tiles=tiles)


def offsets_on_device(geometry: Geometry, parts: int = 1, *, dense: bool = False) -> Offsets:
    """What the maps of a convolution are made by."""
    return Offsets(geometry, pack_geometry(geometry).to(PLACE), offset_slots(geometry, parts, dense=dense).to(PLACE))


def random_sites(points: tuple[int, ...], spread: int, centre: int = 0, seed: int = 0) -> Tensor:
    """Distinct sites, some for each item: int32 [n, 4], in a random order within an item."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randint(-spread, spread + 1, (sum(points), 3), generator=generator) + centre
    item = torch.repeat_interleave(torch.arange(len(points)), torch.tensor(points))[:, None]
    coordinates = torch.cat([item, xyz], 1).int()
    return coordinates[reference.unique_first(coordinates)[0]]


def random_map(k: int, inputs: int, outputs: int, density: float) -> Tensor:
    """A map with some inputs; two offsets are missing from all rows, one row has none."""
    rows = torch.randint(0, max(inputs, 1), (k, outputs))
    rows[torch.rand(k, outputs) > density] = -1
    if k > 4:
        rows[[1, k - 2]] = -1
    rows[:, outputs // 2 : outputs // 2 + 1] = -1
    return rows


def map_of(
    rows: Tensor,
    capacity: int,
    tensor: Callable[..., Tensor] = ints,
    *,
    shuffled: bool = True,
    parts: int = 1,
    told: bool = True,
) -> KernelMap:
    """A given map, int [k, outputs], in some random order, or in that of the rows; `tensor` makes room for it.

    parts  1, or 3 if it is of 27 offsets
    told   whether it is told in which order tiles are made: some random one, but for those of the last part
    """
    k, m = rows.shape
    result, keys = KernelMap.made(k, capacity, tensor, parts), torch.zeros(m, dtype=torch.int32)
    offsets = offset_slots(CUBE, parts)[:, 0].long().view(parts, -1) if parts > 1 else torch.arange(k)[None]
    for part, mine in enumerate(offsets):
        has = (rows[mine] >= 0).any(0)
        keys |= has.int() << 8 * part
        order = torch.randperm(m) if shuffled else torch.arange(m)
        if part < parts - 1:
            order = order[torch.sort(has[order].int(), stable=True).indices]
            result.ones[part] = int((~has).sum())
        padded = torch.full((k, -(-m // 64) * 64), -1)
        padded[mine, :m] = rows[mine][:, order]
        result.rows[mine, :m] = padded[mine, :m].int().to(result.rows.device)
        result.order[part, :m] = order.int()
        words = present_words(padded)
        result.present[part, : len(words)] = words
    result.keys[:m] = keys
    if not told:
        return result
    tiles = tensor(*tiles_shape(capacity, parts))
    for own, size in zip(tiles, TILE_SIZES, strict=True):
        given = [one[at] for one in tile_sets(result, m, size) for at in torch.randperm(len(one)).tolist()]
        own[: len(given)] = torch.tensor(given, dtype=torch.int32)
    return replace(result, tiles=tiles)


def tile_sets(kernel_map: KernelMap, rows: int, size: int) -> list[list[int]]:
    """Which tiles of a map there are, as `tiles` tells them: those of the last part come after all others."""
    each, last, groups = -(-rows // size), kernel_map.parts - 1, size // 64
    first = [int(ones) // size if rows else 0 for ones in kernel_map.ones[:last]]
    before = [part << 26 | tile * groups for part in range(last) for tile in range(first[part], each)]
    return [before, [last << 26 | tile * groups for tile in range(each)]]


def sums_for(kernel_map: KernelMap, packed: PackedWeight, y: Tensor) -> dict[str, Tensor]:
    """What a convolution needs beside its operands if the map is in parts."""
    shape = part_sums(kernel_map.parts, len(y), packed)
    sums = torch.full(shape, torch.nan, device=y.device)
    return {"sums": sums, "progress": torch.zeros(PROGRESS, dtype=torch.int32, device=y.device)}


def key_of(there: Tensor, bits: Tensor) -> int:
    """What an output row is sorted by: of the bits of the offsets that it has, the rank in the Gray code."""
    word = 0
    for bit in bits[there].tolist():
        word |= 1 << bit if bit >= 0 else 0
    rank = 0
    while word:
        rank ^= word
        word >>= 1
    return rank


def region_rows(rows: int, room: int, regions: int) -> int:
    """How many rows each region has, if there may be so many: as many as of all there is room for, or more."""
    return -(-rows // max(1, min(regions, rows // max(1, room // regions))))


def check_map(found: KernelMap, expected: Tensor, geometry: Geometry, *, dense: bool = False, regions: int = 1) -> None:
    """Compare with a reference map int64 [k, m]: rows with equal keys, of the same region, may be in any order.

    `present` must tell the same as its rows.
    """
    (k, m), parts = expected.shape, found.parts
    slots = offset_slots(geometry, parts, dense=dense).view(parts, k // parts, 2).long()
    for part, (offsets, bits) in enumerate(zip(slots[:, :, 0], slots[:, :, 1], strict=True)):
        own = expected[offsets]
        own_bits = torch.where(bits < 0, bits, bits - 8 * part)
        keys = [key_of(own[:, row] >= 0, own_bits) for row in range(m)]
        order = found.order[part, :m].tolist()
        assert sorted(order) == list(range(m))
        size = max(1, region_rows(m, found.order.shape[1], regions))
        assert [(row // size, keys[row]) for row in order] == sorted((row // size, keys[row]) for row in order)
        assert bool((found.order[part, m:] == NONSENSE).all())
        first = 0
        if part < parts - 1:
            if m:
                assert int(found.ones[part]) == sum(key == 0 for key in keys)
            first = sum(key == 0 for key in keys) // 256 * 256
        if parts > 1:
            assert (found.keys[:m].cpu() >> 8 * part & 255).tolist() == keys
        rows, ordered = found.rows[offsets].cpu().long(), own[:, order]
        told = torch.zeros(len(offsets), -(-m // 256), 256, dtype=torch.bool)
        told.view(len(offsets), -1)[:, :m] = ordered >= 0
        told = told.any(2, keepdim=True).expand_as(told).reshape(len(offsets), -1)[:, :m]
        assert torch.equal(rows[:, first:m][told[:, first:]], ordered[:, first:][told[:, first:]])
        assert bool((rows[:, :m][~told] == NONSENSE).all())
        assert bool((rows[:, m:] == NONSENSE).all())
        padded = torch.full((k, -(-m // 64) * 64), -1)
        padded[offsets, :m] = ordered
        words = present_words(padded)
        assert torch.equal(found.present[part, first // 64 : len(words)].cpu(), words[first // 64 :])
    check_tiles(found, m)


def check_tiles(found: KernelMap, rows: int) -> None:
    """All tiles of each set are there, those of most offsets first, as far as these are told apart."""
    assert found.tiles is not None
    for tiles, size in zip(found.tiles.tolist(), TILE_SIZES, strict=True):
        at = 0
        for one in tile_sets(found, rows, size):
            given = tiles[at : at + len(one)]
            assert sorted(given) == one
            counts = [min(511, offsets_of_tile(found, tile, rows, size)) for tile in given]
            assert counts == sorted(counts, reverse=True)
            at += len(one)
        assert tiles[at:] == [NONSENSE] * (len(tiles) - at)


def offsets_of_tile(found: KernelMap, tile: int, rows: int, size: int) -> int:
    """How many offsets any of its rows has."""
    part, group = tile >> 26, tile & (1 << 26) - 1
    words = found.present[part, group : min(group + size // 64, -(-rows // 64))].tolist()
    return sum(bin(reduce(or_, column) & 0xFFFFFFFF).count("1") for column in zip(*words, strict=True))


def check_found(sites: SiteBuffer) -> None:
    """Every site is in the block that the table finds for it, and nothing else is in any."""
    m, heads = int(sites.count), sites.heads[0].flatten()[::2]
    coordinates, cells = sites.coordinates[:m].cpu(), sites.cells.cpu()
    found = heads[heads != FREE].cpu().long()
    blocks = {tuple(place[:1] + [axis >> 1 for axis in place[1:]]) for place in coordinates.tolist()}
    assert len(found) == len(blocks)
    assert bool((found < m).all())
    rows = cells[found]
    assert sorted(rows[rows >= 0].tolist()) == list(range(m))
    for head, block in zip(found.tolist(), rows.tolist(), strict=True):
        for cell, row in enumerate(block):
            if row >= 0:
                item, x, y, z = coordinates[row].tolist()
                assert cell == (x & 1) << 2 | (y & 1) << 1 | z & 1
                assert [item, x >> 1, y >> 1, z >> 1] == [item] + [int(axis) >> 1 for axis in coordinates[head][1:]]


def present_words(rows: Tensor) -> Tensor:
    """Which offsets any of 64 places has, by the rows int [k, places] of whole groups: int32 [groups, words]."""
    k, places = rows.shape
    groups, words = places // 64, -(-k // 32)
    bits = torch.zeros(groups, words * 32, dtype=torch.int64)
    bits[:, :k] = (rows >= 0).view(k, groups, 64).any(2).T
    words = (bits.view(groups, words, 32) << torch.arange(32)).sum(2)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def voxelized_by_reference(grid: dict[str, object], cloud: Value) -> tuple[Value, Placement]:
    node, context = Voxelize(name="grid", op="voxelize", inputs=("points",), **grid), Context({})
    return node.reference([cloud], {}, context), context.placements["grid"]


def grid_of(grid: dict[str, object]) -> Grid:
    node = Voxelize(name="grid", op="voxelize", inputs=("points",), **grid)
    return Grid(node.origin, node.voxel_size_m, node.cells)


def operands(ci: int, co: int, k: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random rows, NaN past those in use, and a weight rounded to the type."""
    x = poisoned(inputs + 5, ci, dtype=dtype)
    x[:inputs] = torch.randn(inputs, ci, device="cuda").to(dtype)
    return x, (torch.randn(k, ci, co, device="cuda") * (3 * ci) ** -0.5).to(dtype)


def expected_conv(x: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    return gather_multiply_add(x.double(), weight.double(), rows.cuda())
