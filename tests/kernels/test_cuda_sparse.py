"""Kernels between points, sites and images on a GPU against the reference ops, and all of them as one graph."""

import pytest
import torch

from lacuna_kernels.cuda.devoxelize import devoxelize_nearest, devoxelize_trilinear
from lacuna_kernels.cuda.global_pool import global_pool
from lacuna_kernels.cuda.kernel_map import MapJob, make_maps, map_work
from lacuna_kernels.cuda.row_means import row_means, row_means_work
from lacuna_kernels.cuda.sparse_conv import pack_weight, sparse_conv
from lacuna_kernels.cuda.sparse_to_bev import sparse_to_bev
from lacuna_kernels.cuda.tile_order import TileOrder, order_tiles
from lacuna_kernels.cuda.voxelize import Grid, placing_work, site_of_points, voxelize, voxels_of_points
from lacuna_kernels.ops import coordinates as reference
from lacuna_kernels.ops.context import Context
from lacuna_kernels.ops.devoxelize import gather_rows, interpolate
from lacuna_kernels.ops.global_pool import GlobalPool
from lacuna_kernels.ops.sparse_conv import active_sites
from lacuna_kernels.types import Level, Value
from tests.cases import CLOUDS, CloudCase, assert_close, tolerance
from tests.kernels.device_sites import (
    DTYPES,
    GRIDS,
    SPARE,
    STRIDED,
    SUBMANIFOLD,
    cloud_on_device,
    expected_conv,
    grid_of,
    ints,
    mapped,
    offsets_on_device,
    operands,
    poisoned,
    random_sites,
    sites_on_device,
    strided,
    sums_for,
    voxelized,
    voxelized_by_reference,
)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("channels", [1, 19, 96])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CLOUDS, ids=str)
def test_points_get_the_features_of_their_voxel(device, case, dtype, channels):
    cloud = case.value()
    points, n = cloud_on_device(cloud), len(cloud.data)
    _, where = voxelized_by_reference(GRIDS[2], cloud)
    placement, sites, _ = voxelized(device, points, grid_of(GRIDS[2]))
    x, y = poisoned(sites.capacity, channels, dtype=dtype), poisoned(n + SPARE, channels, dtype=dtype)
    x[: int(sites.count)] = torch.randn(int(sites.count), channels, device="cuda").to(dtype)

    devoxelize_nearest(device, x, placement, points.count, y)

    assert torch.equal(y[:n].cpu(), gather_rows(x[: int(sites.count)].cpu(), where.voxel_of_point))
    assert bool(y[n:].isnan().all())


@pytest.mark.parametrize("grid", GRIDS[:3], ids=["plain", "origin", "range"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CLOUDS, ids=str)
def test_points_get_the_trilinear_mean_of_the_sites_around_them(device, case, dtype, grid):
    cloud = case.value()
    points, n = cloud_on_device(cloud), len(cloud.data)
    expected_sites, where = voxelized_by_reference(grid, cloud)
    placement, fine, _ = voxelized(device, points, grid_of(grid))
    level = Level("down", (2, 2, 2), None, "grid", geometry=STRIDED[0])
    coordinates = active_sites(expected_sites.coordinates, level)
    coarse, _ = strided(device, fine, STRIDED[0], None, fine.capacity)
    for sites, stride, rows in ((fine, (1, 1, 1), expected_sites.coordinates), (coarse, (2, 2, 2), coordinates)):
        x, y = poisoned(sites.capacity, 19, dtype=dtype), poisoned(n + SPARE, 19, dtype=dtype)
        x[: len(rows)] = torch.randn(len(rows), 19, device="cuda").to(dtype)
        expected = interpolate(Value(x[: len(rows)].cpu().float(), None, rows), where, stride)

        devoxelize_trilinear(device, x, placement, sites, stride, points.count, y)

        assert_close(y[:n], expected, tolerance(dtype, 8))
        assert bool(y[n:].isnan().all())


@pytest.mark.parametrize("mode", ["mean", "max"])
@pytest.mark.parametrize("channels", [1, 5, 96])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("points", [(0,), (1, 0, 33, 5000), (0, 2, 64)], ids=str)
def test_clouds_are_pooled_one_by_one(device, points, dtype, channels, mode):
    offsets = torch.tensor([0, *points]).cumsum(0)
    x = poisoned(sum(points) + SPARE, channels, dtype=dtype)
    x[: sum(points)] = torch.randn(sum(points), channels, device="cuda").to(dtype) - 2
    y = poisoned(len(points), channels, dtype=dtype)
    node = GlobalPool(name="pool", op="global_pool", inputs=("x",), mode=mode)

    global_pool(device, x, offsets.int().cuda(), y, mode)

    expected = node.reference([Value(x[: sum(points)].double().cpu(), offsets)], {}, Context({})).data
    assert_close(y, expected, tolerance(dtype, max(points) + 1))


@pytest.mark.parametrize("source, result", [(torch.float32, torch.float16), (torch.bfloat16, torch.float32)])
def test_sites_get_the_mean_of_their_points_and_zeros_without_any(device, source, result):
    cloud = CLOUDS[1].value()
    points, n = cloud_on_device(cloud), len(cloud.data)
    placement, fine, _ = voxelized(device, points, grid_of(GRIDS[2]))
    geometry = STRIDED[1]  # more sites than cells with points
    expected_sites, where = voxelized_by_reference(GRIDS[2], cloud)
    coordinates = active_sites(expected_sites.coordinates, Level("down", (2, 2, 2), None, "grid", geometry=geometry))
    coarse, _ = strided(device, fine, geometry, None, len(coordinates) + SPARE)
    item = torch.repeat_interleave(cloud.offsets.diff())[:, None]
    cell = torch.div(where.position.floor().long(), 2, rounding_mode="floor")
    row = reference.SiteIndex(coordinates).find(torch.cat([item, cell], 1))
    row = torch.where(where.voxel_of_point >= 0, row, -1)
    x = torch.randn(n + SPARE, 19, device="cuda").to(source)
    found, y = ints(n + SPARE), poisoned(coarse.capacity, 19, dtype=result)

    site_of_points(device, placement, points.count, coarse, (2, 2, 2), found)
    work = ints(row_means_work(n + SPARE, coarse.capacity))
    row_means(device, x, found, points.count, y, coarse.count, work)

    assert torch.equal(found[:n].cpu().long(), row)
    sums = torch.zeros(len(coordinates), 19, dtype=torch.float64)
    sums.index_add_(0, row[row >= 0], x[:n].cpu().double()[row >= 0])
    counts = torch.bincount(row[row >= 0], minlength=len(sums)).clamp(min=1)
    assert_close(y[: len(coordinates)], sums / counts[:, None], tolerance(result, n))
    assert bool((counts[:, None] == 1).any())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sites_are_laid_out_as_a_birds_eye_view(device, dtype):
    coordinates = random_sites((60, 0, 80), 4)
    sites, (size_x, size_y, size_z) = sites_on_device(device, coordinates, 3), (4, 3, 2)
    x = poisoned(sites.capacity, 5, dtype=dtype)
    x[: len(coordinates)] = torch.randn(len(coordinates), 5, device="cuda").to(dtype)
    expected = torch.zeros(3, 5, size_z, size_y, size_x, dtype=dtype)
    for (item, cx, cy, cz), row in zip(coordinates.tolist(), x.cpu(), strict=False):
        if 0 <= cx < size_x and 0 <= cy < size_y and 0 <= cz < size_z:
            expected[item, :, cz, cy, cx] = row
    image = poisoned(3, 5 * size_z, size_y, size_x, dtype=dtype)

    sparse_to_bev(device, x, sites, (size_x, size_y, size_z), image)

    assert torch.equal(image.cpu(), expected.view(3, 5 * size_z, size_y, size_x))


def test_a_captured_pipeline_follows_the_points_that_it_is_given(device):
    """One graph from points to points, replayed on other clouds than it was captured on."""
    grid, geometry, capacity = Grid((0, 0, 0), (0.5, 0.5, 0.5)), SUBMANIFOLD[0], 2000
    room = cloud_on_device(CloudCase("room", (capacity, 0, 0, 0)).value(), spare=0, spare_items=0)
    _, weight = operands(4, 19, 27, 1, torch.bfloat16)
    packed, result = pack_weight(weight, torch.bfloat16), poisoned(capacity, 19, dtype=torch.bfloat16)
    x, y = (poisoned(capacity, channels, dtype=torch.bfloat16) for channels in (4, 19))
    buffers = voxelized(device, room, grid)
    kernel_map = mapped(device, buffers[1], buffers[1], geometry)
    reach, sums = offsets_on_device(geometry, kernel_map.parts), sums_for(kernel_map, packed, y)
    tiles = kernel_map.tiles
    assert tiles is not None
    work = [ints(placing_work(capacity)), ints(row_means_work(capacity, capacity))]
    work.append(ints(map_work(geometry.volume, capacity)))

    def run() -> None:
        placement, sites, overflow = buffers
        voxelize(device, room, grid, placement, sites, work[0], overflow)
        voxels_of_points(device, room, placement, sites, work[0])
        row_means(device, room.points, placement.voxel_of_point, room.count, x, sites.count, work[1])
        make_maps(device, [MapJob(sites, sites, reach, kernel_map, work[2])])
        order_tiles(device, [TileOrder(kernel_map.present, kernel_map.ones, tiles, sites.count)])
        sparse_conv(device, x, packed, kernel_map, sites.count, y, **sums)
        devoxelize_nearest(device, y, placement, room.count, result)

    stream = device.new_stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    for case in CLOUDS:
        if len(case.points) > 4 or sum(case.points) > capacity:
            continue
        cloud = case.value()
        n = len(cloud.data)
        room.points.fill_(torch.nan)
        room.points[:n] = cloud.data.cuda()
        offsets = torch.cat([cloud.offsets, torch.full((5 - len(cloud.offsets),), n)])
        room.offsets.copy_(offsets)
        room.count.fill_(n)
        result.fill_(torch.nan)

        graph.replay()

        expected, where = voxelized_by_reference({"voxel_size_m": (0.5, 0.5, 0.5)}, cloud)
        rows = reference.kernel_map(expected.coordinates, expected.coordinates, geometry)
        sums = expected_conv(expected.data.bfloat16().cuda(), weight, rows).cpu()
        assert_close(result[:n], gather_rows(sums, where.voxel_of_point), tolerance(torch.bfloat16, 27 * 4))
        assert bool(result[n:].isnan().all())


def test_the_same_batch_gives_the_same_bits_every_time(device):
    cloud = CloudCase("busy", (20_000, 10_000), spread_m=2.0).value()
    points = cloud_on_device(cloud)
    seen = []
    for _ in range(5):
        placement, sites, _ = voxelized(device, points, Grid((0, 0, 0), (0.2, 0.2, 0.2)))
        coarse, _ = strided(device, sites, STRIDED[1], None, 8 * sites.capacity)
        y = poisoned(sites.capacity, 4)
        work = ints(row_means_work(len(points.points), sites.capacity))
        row_means(device, points.points, placement.voxel_of_point, points.count, y, sites.count, work)
        n, m = int(sites.count), int(coarse.count)
        seen.append((placement.voxel_of_point[:30_000], sites.coordinates[:n], coarse.coordinates[:m], y[:n]))

    for again in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], again, strict=True))
