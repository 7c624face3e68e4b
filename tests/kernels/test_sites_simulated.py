"""The kernels that make sites and kernel maps, run on the CPU: tests/kernels/simulated.py."""

from dataclasses import replace

import pytest
import torch

from lacuna_kernels.cuda.kernel_map import KernelMap, MapJob, make_maps, map_work
from lacuna_kernels.cuda.row_means import list_points, row_means, row_means_work
from lacuna_kernels.cuda.tile_order import TileOrder, order_tiles, tiles_shape
from lacuna_kernels.ops import coordinates as reference
from lacuna_kernels.ops.sparse_conv import active_sites
from lacuna_kernels.types import Geometry, Level, Value
from tests.cases import CLOUDS
from tests.kernels import device_sites
from tests.kernels.device_sites import (
    CUBE,
    GENERATIVE,
    GRIDS,
    NONSENSE,
    SPARE,
    STRIDED,
    SUBMANIFOLD,
    check_found,
    check_map,
    check_tiles,
    cloud_on_device,
    grid_of,
    mapped,
    random_sites,
    region_rows,
    sites_on_device,
    strided,
    voxelized,
    voxelized_by_reference,
)
from tests.kernels.simulated import SimulatedDevice

ITEMS = 4
UNLUCKY = (0, -1162, 340, 88)
"""A site whose block's hash is that of an entry that is free."""
SITES = [random_sites((60, 1, 0, 40), 3), random_sites((0, 0, 0, 0), 3), random_sites((200,), 60, centre=-7)]


@pytest.fixture
def device(tmp_path_factory, monkeypatch, request):
    monkeypatch.setattr(device_sites, "PLACE", "cpu")
    folder = tmp_path_factory.getbasetemp() / "sites"
    folder.mkdir(exist_ok=True)
    return SimulatedDevice(folder, 1, len(request.node.name), plain=True)


@pytest.mark.parametrize("grid", GRIDS[:3], ids=["plain", "origin, first", "range"])
@pytest.mark.parametrize("case", [case for case in CLOUDS if case.name != "far away"], ids=str)
def test_voxels_are_those_of_the_reference_and_in_its_order(device, case, grid):
    cloud = case.value()
    cloud = Value(cloud.data[:300], cloud.offsets.clamp(max=300))
    expected, where = voxelized_by_reference(grid, cloud)
    n, m = len(cloud.data), len(expected.data)

    placement, sites, overflow = voxelized(device, cloud_on_device(cloud), grid_of(grid))

    assert not bool(overflow)
    assert int(sites.count) == m
    assert torch.equal(sites.coordinates[:m], expected.coordinates)
    assert torch.equal(sites.offsets[: len(expected.offsets)].long(), expected.offsets)
    assert torch.equal(placement.voxel_of_point[:n].long(), where.voxel_of_point)
    check_found(sites)


@pytest.mark.parametrize("shape", [None, (4, 5, 6)], ids=["unbounded", "bounded"])
@pytest.mark.parametrize("geometry", [*STRIDED, *GENERATIVE], ids=str)
def test_sites_of_a_level_are_those_of_the_reference_and_in_its_order(device, geometry, shape):
    level = Level("made", geometry.stride, shape, "grid", geometry=geometry)
    for coordinates in SITES if shape is None else SITES[:1]:
        expected = active_sites(coordinates, level)

        inputs = sites_on_device(device, coordinates, ITEMS)

        sites, overflow = strided(device, inputs, geometry, shape, len(expected) + 5)

        m = len(expected)
        assert not bool(overflow)
        assert int(sites.count) == m
        assert torch.equal(sites.coordinates[:m], expected)
        assert bool((sites.coordinates[m:] == NONSENSE).all())
        assert torch.equal(sites.offsets[: ITEMS + 1].long(), reference.count_offsets(expected, ITEMS))
        check_found(sites)


@pytest.mark.parametrize("geometry", [STRIDED[1], GENERATIVE[1]], ids=str)
def test_too_many_sites_raise_the_flag_and_stay_in_their_room(device, geometry):
    inputs = sites_on_device(device, random_sites((200,), 50), 1)

    sites, overflow = strided(device, inputs, geometry, None, 100)

    assert bool(overflow)
    assert int(sites.count) <= 100
    assert bool((sites.heads[0].flatten()[::2] < 100).all())


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("geometry", [*SUBMANIFOLD, *STRIDED], ids=str)
def test_maps_are_those_of_the_reference(device, geometry, parts):
    if parts > 1 and geometry.kernel_size != CUBE.kernel_size:
        pytest.skip("its offsets are in one part")
    for coordinates in SITES[:2]:
        inputs = sites_on_device(device, coordinates, ITEMS)
        coarse, outputs = coordinates, inputs
        if geometry in STRIDED:
            coarse = active_sites(coordinates, Level("down", geometry.stride, None, "grid", geometry=geometry))
            outputs, _ = strided(device, inputs, geometry, None, len(coarse) + SPARE)
        forward = reference.kernel_map(coordinates, coarse, geometry)

        check_map(mapped(device, inputs, outputs, geometry, parts=parts), forward, geometry)


@pytest.mark.parametrize("regions, rows", [(1, 99), (3, 99), (8, 25)])
def test_rows_of_a_dense_level_are_in_the_order_of_their_furthest_offsets_region_by_region(device, regions, rows):
    assert region_rows(len(SITES[0]), len(SITES[0]) + SPARE, regions) == rows
    sites = sites_on_device(device, SITES[0], ITEMS)

    found = mapped(device, sites, sites, CUBE, dense=True, regions=regions)

    check_map(found, reference.kernel_map(SITES[0], SITES[0], CUBE), CUBE, dense=True, regions=regions)


def test_maps_of_any_sizes_are_made_together(device):
    """In three parts and in one, of more offsets than a word has, and of no sites."""
    many, few, none = (sites_on_device(device, c, ITEMS) for c in (SITES[0], SITES[0][:5], SITES[0][:0]))
    made = [(many, CUBE, 3), (few, SUBMANIFOLD[2], 1), (none, CUBE, 1), (many, CUBE, 1)]
    results = [KernelMap.made(g.volume, sites.capacity, device_sites.ints, parts) for sites, g, parts in made]

    jobs, orders = [], []
    for (sites, g, parts), result in zip(made, results, strict=True):
        work = device_sites.ints(map_work(g.volume, sites.capacity, parts))
        jobs.append(MapJob(sites, sites, device_sites.offsets_on_device(g, parts), result, work))
        tiles = device_sites.ints(*tiles_shape(sites.capacity, parts))
        orders.append(TileOrder(result.present, result.ones, tiles, sites.count))
    make_maps(device, jobs)
    order_tiles(device, orders)

    for (sites, g, _), result, order in zip(made, results, orders, strict=True):
        coordinates = sites.coordinates[: int(sites.count)]
        found = replace(result, tiles=order.tiles)
        check_map(found, reference.kernel_map(coordinates, coordinates, g), g)


@pytest.mark.parametrize("parts, volume", [(1, 27), (3, 27), (1, 40), (1, 600)])
def test_tiles_of_most_offsets_come_first(device, parts, volume):
    """Half of the rows have none of the second part; of more than 511 offsets tiles are not told apart."""
    generator = torch.Generator().manual_seed(volume)
    for rows in (0, 1, 64, 65, 128, 3000, 150_000):
        found = KernelMap.made(1, rows + SPARE, device_sites.ints, parts)
        words = torch.randint(0, 2**31, (*found.present.shape[:2], -(-volume // 32)), generator=generator)
        if volume < 512:
            words &= torch.randint(0, 2**31, words.shape, generator=generator)
        else:
            words[:, ::3] = -1
        ones = (torch.arange(parts) * (rows // 2)).int()
        tiles = device_sites.ints(*tiles_shape(rows + SPARE, parts))
        found = replace(found, present=words.int(), ones=ones, tiles=tiles)

        count = torch.tensor([rows], dtype=torch.int32)
        order_tiles(device, [TileOrder(found.present, found.ones, tiles, count)])

        check_tiles(found, rows)


@pytest.mark.parametrize("geometry", [*STRIDED, *GENERATIVE], ids=str)
def test_maps_that_lead_back_are_those_of_the_reference(device, geometry: Geometry):
    coordinates = SITES[0]
    level = Level("made", geometry.stride, None, "grid", geometry=geometry)
    made = active_sites(coordinates, level)
    given = sites_on_device(device, coordinates, ITEMS)
    outputs, _ = strided(device, given, geometry, None, len(made) + SPARE)
    forward = reference.kernel_map(coordinates, made, geometry)

    if geometry.generative:
        check_map(mapped(device, given, outputs, geometry, backward=True), forward, geometry)
    else:
        back = reference.inverse_map(forward, len(coordinates))
        check_map(mapped(device, outputs, given, geometry, backward=True), back, geometry)


def test_blocks_with_the_hash_of_free_entries_are_found(device):
    corner = torch.tensor(UNLUCKY, dtype=torch.int32)
    cells = torch.cartesian_prod(*[torch.arange(2, dtype=torch.int32)] * 3)
    coordinates = corner + torch.nn.functional.pad(cells, (1, 0))
    sites = sites_on_device(device, coordinates, ITEMS)

    check_map(mapped(device, sites, sites, CUBE), reference.kernel_map(coordinates, coordinates, CUBE), CUBE)


@pytest.mark.parametrize(
    "points, rows, apart",
    [(700, 300, 1), (700, 3, 1), (5000, 2, 1), (5000, 50, 20), (300, 1, 1), (1, 1, 1), (0, 5, 1)],
)
def test_points_are_listed_by_row_in_their_order(device, points, rows, apart):
    """Long rows, too, of which one block has several if they are 20 apart; some points are of no row in use."""
    torch.manual_seed(points + rows)
    capacity = rows + SPARE
    row_of_point = apart * torch.randint(-1, rows // apart + 1, (points + SPARE,), dtype=torch.int32)
    work = device_sites.ints(row_means_work(len(row_of_point), capacity))

    listed = list_points(device, row_of_point, device_sites.counted(points), device_sites.counted(rows), capacity, work)

    for row in range(rows):
        start, size = int(listed.starts[row]), int(listed.counts[row])
        expected = (row_of_point[:points] == row).nonzero()[:, 0]
        assert listed.order[start : start + size].tolist() == expected.tolist()


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("channels, padding, dtype", [(3, 5, torch.float32), (40, 0, torch.float16)], ids=str)
@pytest.mark.parametrize("points, rows", [(250, 40), (7000, 5)], ids=["short", "long"])
def test_rows_are_the_means_of_their_points_added_in_order(device, points, rows, channels, padding, dtype, first_only):
    torch.manual_seed(channels)
    capacity = rows + SPARE
    x, row_of_point = torch.randn(points, channels), torch.randint(-1, rows - 1, (points,), dtype=torch.int32)
    wide = torch.full((capacity, channels + padding + 1), torch.nan, dtype=dtype)
    work, (count, made) = device_sites.ints(row_means_work(points, capacity)), map(device_sites.counted, (points, rows))

    y = wide[:, :channels]
    row_means(device, x, row_of_point, count, y, made, work, first_only=first_only, padding=padding)

    for row in range(rows):
        own = x[row_of_point == row][: 1 if first_only else None]
        total = torch.zeros(channels)
        for point in own:
            total += point
        assert torch.equal(y[row], (total / max(1, len(own))).to(dtype))
    assert not bool(wide[:rows, channels : channels + padding].any())
    assert bool(wide[rows:].isnan().all()) and bool(wide[:, channels + padding :].isnan().all())
