"""Kernels for points and sites on a GPU against the reference ops: whole numbers exactly, features within roundoff."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lacuna_kernels.cuda.coordinates import pack_geometry, table_slots
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.devoxelize import devoxelize_nearest, devoxelize_trilinear
from lacuna_kernels.cuda.global_pool import global_pool
from lacuna_kernels.cuda.kernel_map import KernelMap, forward_map
from lacuna_kernels.cuda.row_means import row_means, row_means_work, sort_by_row, sort_work
from lacuna_kernels.cuda.scan import exclusive_scan, scan_work
from lacuna_kernels.cuda.sparse_conv import FP32_TILES, MMA_TILES, candidates, pack_weight, sparse_conv
from lacuna_kernels.cuda.sparse_to_bev import sparse_to_bev
from lacuna_kernels.cuda.voxelize import Grid, site_of_points, voxelize
from lacuna_kernels.ops import coordinates as reference
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.context import Context, Placement
from lacuna_kernels.ops.devoxelize import gather_rows, interpolate
from lacuna_kernels.ops.global_pool import GlobalPool
from lacuna_kernels.ops.sparse_conv import active_sites, gather_multiply_add
from lacuna_kernels.ops.voxelize import Voxelize
from lacuna_kernels.types import Geometry, Level, Value
from tests.cases import CLOUDS, CloudCase, assert_close, tolerance
from tests.kernels.device_sites import (
    NONSENSE,
    SPARE,
    cloud_on_device,
    counted,
    ints,
    mapped,
    poisoned,
    sites_on_device,
    strided,
    voxelized,
)

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
GRIDS = [
    {"voxel_size_m": (0.5, 0.5, 0.5)},
    {"voxel_size_m": (0.3, 0.7, 1.1), "origin_m": (1.5, -2.5, 0.25), "reduce": "first"},
    {"voxel_size_m": (0.25, 0.25, 0.5), "range_m": (-2.0, -1.0, -3.0, 3.0, 4.0, 1.0)},
    {"voxel_size_m": (1e-3, 1e-3, 1e-3)},
]
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
    Geometry((3, 1, 1), (2, 1, 1), (0, 0, 0), (1, 1, 1)),
    Geometry((2, 3, 2), (3, 4, 5), (1, 0, 2), (2, 1, 3)),
    Geometry((3, 3, 3), (1, 1, 1), (0, 2, 1), (1, 1, 1)),
    Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), floor_sites=True),
    Geometry((2, 2, 2), (2, 3, 1), (0, 0, 0), (1, 1, 1), floor_sites=True),
]


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = Device()
    yield device
    device.close()


def random_sites(points: tuple[int, ...], spread: int, centre: int = 0, seed: int = 0) -> Tensor:
    """Distinct sites, some for each item: int32 [n, 4], in a random order within an item."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randint(-spread, spread + 1, (sum(points), 3), generator=generator) + centre
    item = torch.repeat_interleave(torch.arange(len(points)), torch.tensor(points))[:, None]
    coordinates = torch.cat([item, xyz], 1).int()
    return coordinates[reference.unique_first(coordinates)[0]]


SITES = [
    pytest.param(random_sites((400, 1, 0, 300), 5), id="dense"),
    pytest.param(random_sites((400, 200), 40), id="thin"),
    pytest.param(random_sites((300,), 4, centre=2**30 - 6), id="largest"),
    pytest.param(random_sites((300,), 4, centre=-(2**30) + 6), id="smallest"),
    pytest.param(random_sites((200, 200), 2**30 - 1), id="huge extent"),
    pytest.param(random_sites((1,), 3), id="one"),
    pytest.param(random_sites((0, 0), 3), id="none"),
]


@pytest.mark.parametrize("length", [0, 1, 4096, 4097, 200_000, 5_000_000])
def test_the_running_sum_is_that_of_the_values_in_use(device, length):
    values = torch.randint(0, 4, (length + SPARE,), dtype=torch.int32, device="cuda")
    running, total, overflow = ints(length + SPARE), ints(1), torch.zeros(1, dtype=torch.int32, device="cuda")

    exclusive_scan(device, values, running, counted(length), ints(scan_work(len(values))), (total, 300_000, overflow))

    sums = values[:length].long().cumsum(0)
    whole = int(sums[-1]) if length else 0
    assert torch.equal(running[:length].long(), sums - values[:length])
    assert bool((running[length:] == NONSENSE).all())
    assert int(total) == min(whole, 300_000)
    assert bool(overflow) == (whole > 300_000)


@pytest.mark.parametrize("points, rows", [(0, 5), (1, 1), (2048, 255), (2049, 256), (300_000, 70_000), (50_000, 1)])
def test_points_are_sorted_by_row_and_keep_their_order(device, points, rows):
    row_of_point = torch.randint(-1, rows, (points + SPARE,), dtype=torch.int32, device="cuda")
    order = torch.sort(torch.where(row_of_point < 0, rows, row_of_point)[:points], stable=True).indices

    keys, found = sort_by_row(device, row_of_point, counted(points), rows, ints(sort_work(len(row_of_point))))

    assert torch.equal(found[:points].long(), order)
    assert torch.equal(keys[:points], row_of_point[order])


def voxelized_by_reference(grid: dict[str, object], cloud: Value) -> tuple[Value, Placement]:
    node, context = Voxelize(name="grid", op="voxelize", inputs=("points",), **grid), Context({})
    return node.reference([cloud], {}, context), context.placements["grid"]


def grid_of(grid: dict[str, object]) -> Grid:
    node = Voxelize(name="grid", op="voxelize", inputs=("points",), **grid)
    return Grid(node.origin, node.voxel_size_m, node.cells)


@pytest.mark.parametrize("grid", GRIDS, ids=["plain", "origin, first", "range", "fine"])
@pytest.mark.parametrize("case", CLOUDS, ids=str)
def test_voxels_are_those_of_the_reference_and_in_its_order(device, case, grid):
    cloud = case.value()
    if case.name == "far away" and grid["voxel_size_m"][0] < 0.01:
        cloud.data[:, :3] *= 2.0**20 / 1e6  # as far as 2^30 voxels of a millimetre
    expected, where = voxelized_by_reference(grid, cloud)
    points = cloud_on_device(cloud)
    n, m = len(cloud.data), len(expected.data)

    placement, sites, overflow = voxelized(device, points, grid_of(grid))
    y = poisoned(sites.capacity, cloud.data.shape[1])
    work = ints(row_means_work(len(points.points), sites.capacity))
    first = grid.get("reduce") == "first"
    row_means(device, points.points, placement.voxel_of_point, points.count, y, sites.count, work, first_only=first)

    assert int(sites.count) == m
    assert not bool(overflow)
    assert torch.equal(sites.coordinates[:m].cpu(), expected.coordinates)
    assert bool((sites.coordinates[m:] == NONSENSE).all())
    assert torch.equal(sites.offsets[: len(expected.offsets)].cpu().long(), expected.offsets)
    assert bool((sites.offsets[len(expected.offsets) :] == m).all())
    assert torch.equal(placement.voxel_of_point[:n].cpu().long(), where.voxel_of_point)
    assert torch.equal(placement.position[:n].cpu(), where.position)
    assert torch.equal(y[:m].cpu(), expected.data)
    assert bool(y[m:].isnan().all())


@pytest.mark.parametrize("points", [100_000, 300_000])
def test_all_points_of_a_large_cloud_may_lie_in_one_voxel(device, points):
    cloud = CloudCase("one voxel", (points,), spread_m=1e-4, centre_m=(0.51, 0.52, 0.53)).value()
    on_device = cloud_on_device(cloud)

    placement, sites, _ = voxelized(device, on_device, Grid((0, 0, 0), (0.5, 0.5, 0.5)))
    y = poisoned(sites.capacity, 4)
    work = ints(row_means_work(len(on_device.points), sites.capacity))
    row_means(device, on_device.points, placement.voxel_of_point, on_device.count, y, sites.count, work)

    assert int(sites.count) == 1
    assert bool((placement.voxel_of_point[:points] == 0).all())
    assert torch.equal(y[:1].cpu(), voxelized_by_reference({"voxel_size_m": (0.5, 0.5, 0.5)}, cloud)[0].data)


@pytest.mark.parametrize("room", [1, 50, 99])
def test_too_many_voxels_raise_the_flag_and_stay_in_their_room(device, room):
    cloud = Value(torch.arange(100.0)[:, None].expand(100, 3).contiguous(), torch.tensor([0, 60, 100]))

    placement, sites, overflow = voxelized(device, cloud_on_device(cloud), Grid((0, 0, 0), (1, 1, 1)), room)

    assert bool(overflow)
    assert int(sites.count) == room
    found = placement.voxel_of_point[:100]
    assert sorted(found[found >= 0].tolist()) == list(range(room))
    assert bool((sites.table < room).all())


@pytest.mark.parametrize("shape", [None, (4, 5, 6)], ids=["unbounded", "bounded"])
@pytest.mark.parametrize("geometry", STRIDED, ids=str)
@pytest.mark.parametrize("coordinates", SITES)
def test_strided_sites_are_those_of_the_reference_and_in_its_order(device, coordinates, geometry, shape):
    level = Level("down", geometry.stride, shape, "grid", geometry=geometry)
    expected = active_sites(coordinates, level)
    m = len(expected)

    found, overflow = strided(device, sites_on_device(device, coordinates, 4), geometry, shape, m + SPARE)

    assert not bool(overflow)
    assert int(found.count) == m
    assert torch.equal(found.coordinates[:m].cpu(), expected)
    assert torch.equal(found.offsets[:5].cpu().long(), reference.count_offsets(expected, 4))


@pytest.mark.parametrize("room", [1, 100])
def test_too_many_strided_sites_raise_the_flag_and_stay_in_their_room(device, room):
    coordinates = random_sites((3000,), 500)
    geometry = STRIDED[1]
    expected = active_sites(coordinates, Level("down", geometry.stride, None, "grid", geometry=geometry))

    found, overflow = strided(device, sites_on_device(device, coordinates, 1), geometry, None, room)

    assert len(expected) > 2 * room + 1024
    assert bool(overflow)
    assert int(found.count) <= room
    assert bool((found.table < room).all())


def check_map(found: KernelMap, expected: Tensor) -> None:
    """Compare with a reference map int64 [k, m]; `present` must tell the same as its rows."""
    k, m = expected.shape
    assert torch.equal(found.rows[:, :m].cpu().long(), expected)
    assert bool((found.rows[:, m:] == NONSENSE).all())
    groups = -(-m // 64)
    padded = torch.full((k, groups * 64), -1)
    padded[:, :m] = expected
    present = (padded >= 0).view(k, groups, 64).any(2).T
    bits = (found.present[:groups].cpu()[:, :, None] >> torch.arange(32) & 1).flatten(1)
    assert torch.equal(bits[:, :k].bool(), present)
    assert not bool(bits[:, k:].any())


@pytest.mark.parametrize("geometry", SUBMANIFOLD, ids=str)
@pytest.mark.parametrize("coordinates", SITES)
def test_submanifold_maps_are_those_of_the_reference(device, coordinates, geometry):
    sites = sites_on_device(device, coordinates, 4)

    check_map(mapped(device, sites, sites, geometry), reference.kernel_map(coordinates, coordinates, geometry))


@pytest.mark.parametrize("geometry", STRIDED, ids=str)
@pytest.mark.parametrize("coordinates", SITES)
def test_strided_and_inverse_maps_are_those_of_the_reference(device, coordinates, geometry):
    coarse = active_sites(coordinates, Level("down", geometry.stride, None, "grid", geometry=geometry))
    forward = reference.kernel_map(coordinates, coarse, geometry)
    inputs = sites_on_device(device, coordinates, 4)
    outputs, _ = strided(device, inputs, geometry, None, len(coarse) + SPARE)

    check_map(mapped(device, inputs, outputs, geometry), forward)
    backward = mapped(device, outputs, inputs, geometry, backward=True)
    check_map(backward, reference.inverse_map(forward, len(coordinates)))


def random_map(k: int, inputs: int, outputs: int, density: float) -> Tensor:
    """A map with some inputs; two offsets are missing from all rows, one row has none."""
    rows = torch.randint(0, max(inputs, 1), (k, outputs))
    rows[torch.rand(k, outputs) > density] = -1
    if k > 4:
        rows[[1, k - 2]] = -1
    rows[:, outputs // 2 : outputs // 2 + 1] = -1
    return rows


def map_on_device(rows: Tensor, capacity: int) -> KernelMap:
    k, m = rows.shape
    padded = torch.full((k, -(-m // 64) * 64), -1)
    padded[:, :m] = rows
    present = (padded >= 0).view(k, -1, 64).any(2).T.long()
    bits = torch.zeros(len(present), -(-k // 32) * 32, dtype=torch.int64)
    bits[:, :k] = present
    words = (bits.view(len(present), -1, 32) << torch.arange(32)).sum(2)
    all_rows, all_words = ints(k, capacity), ints(-(-capacity // 64), words.shape[1])
    all_rows[:, :m] = rows.int().cuda()
    all_words[: len(words)] = torch.where(words >= 2**31, words - 2**32, words).int().cuda()
    return KernelMap(all_rows, all_words)


def operands(ci: int, co: int, k: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random rows, NaN past those in use, and a weight rounded to the type."""
    x = poisoned(inputs + 5, ci, dtype=dtype)
    x[:inputs] = torch.randn(inputs, ci, device="cuda").to(dtype)
    return x, (torch.randn(k, ci, co, device="cuda") * (3 * ci) ** -0.5).to(dtype)


def expected_conv(x: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    return gather_multiply_add(x.double(), weight.double(), rows.cuda())


WIDTHS = [(1, 1), (3, 5), (5, 19), (19, 96), (4, 32), (32, 32), (96, 96), (192, 128), (64, 33), (130, 257), (512, 512)]


@pytest.mark.parametrize("ci, co", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_convolution_agrees_with_float64(device, dtype, ci, co):
    rows = random_map(27, 400, 333, 0.2)
    x, weight = operands(ci, co, 27, 400, dtype)
    y = poisoned(333 + SPARE, co, dtype=dtype)

    sparse_conv(device, x, pack_weight(weight, dtype), map_on_device(rows, len(y)), counted(333), y)

    assert_close(y[:333], expected_conv(x, weight, rows), tolerance(dtype, 27 * ci))
    assert bool(y[333:].isnan().all())


@pytest.mark.parametrize("k", [1, 2, 8, 31, 32, 33, 64, 125, 343])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_kernel_may_have_any_volume(device, dtype, k):
    rows = random_map(k, 200, 500, 0.1)
    x, weight = operands(16, 24, k, 200, dtype)
    y = poisoned(520, 24, dtype=dtype)

    sparse_conv(device, x, pack_weight(weight, dtype), map_on_device(rows, 520), counted(500), y)

    assert_close(y[:500], expected_conv(x, weight, rows), tolerance(dtype, 16 * k))


@pytest.mark.parametrize("ci, co", [(32, 64), (5, 19), (96, 7)])
@pytest.mark.parametrize("m", [0, 1, 63, 64, 65, 129, 1000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_a_map_it_is_a_linear_layer(device, dtype, m, ci, co):
    x, weight = operands(ci, co, 1, m, dtype)
    bias, y = torch.randn(co, device="cuda"), poisoned(1100, co, dtype=dtype)

    sparse_conv(device, x, pack_weight(weight, dtype), None, counted(m), y, bias=bias)

    assert_close(y[:m], x[:m].double() @ weight[0].double() + bias.double(), tolerance(dtype, ci))
    assert bool(y[m:].isnan().all())


@pytest.mark.parametrize("activation", [None, *Activation], ids=str)
@pytest.mark.parametrize("co", [32, 19])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_epilogue_adds_bias_and_residual_and_applies_the_activation(device, dtype, co, activation):
    rows = random_map(8, 100, 200, 0.3)
    x, weight = operands(24, co, 8, 100, dtype)
    bias, residual = torch.randn(co, device="cuda"), torch.randn(200, co, device="cuda").to(dtype)
    y = residual.clone()
    sums = expected_conv(x, weight, rows) + bias.double() + residual.double()
    packed, kernel_map = pack_weight(weight, dtype), map_on_device(rows, 200)

    sparse_conv(device, x, packed, kernel_map, counted(200), y, bias=bias, residual=y, activation=activation, slope=0.2)

    assert_close(y, activate(sums, activation, 0.2), tolerance(dtype, 24 * 8))


@pytest.mark.parametrize("start", [8, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_and_outputs_may_be_columns_of_wider_matrices(device, dtype, start):
    rows = random_map(27, 150, 150, 0.2)
    x, weight = operands(48, 40, 27, 150, dtype)
    wide_x, wide_y = poisoned(155, 64, dtype=dtype), poisoned(150, 56, dtype=dtype)
    wide_x[:, start : start + 48] = x
    y = wide_y[:, start : start + 40]

    sparse_conv(
        device,
        *(wide_x[:, start : start + 48], pack_weight(weight, dtype), map_on_device(rows, 150), counted(150), y),
        residual=wide_x[:150, start : start + 40],
    )

    expected = expected_conv(x, weight, rows) + x[:150, :40].double()
    assert_close(y, expected, tolerance(dtype, 27 * 48))
    assert bool(wide_y[:, :start].isnan().all()) and bool(wide_y[:, start + 40 :].isnan().all())


@pytest.mark.parametrize("ci", [48, 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tile_gives_the_same_bits(device, dtype, ci):
    rows = random_map(27, 500, 700, 0.15)
    x, weight = operands(ci, 40, 27, 500, dtype)
    kernel_map, first = map_on_device(rows, 700), None

    for tile in FP32_TILES if dtype is torch.float32 else MMA_TILES:
        y = poisoned(700, 40, dtype=dtype)
        sparse_conv(device, x, pack_weight(weight, dtype, tile), kernel_map, counted(700), y)
        first = y if first is None else first
        assert torch.equal(y, first), tile


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_cloud_gives_the_same_bits_alone_and_in_a_batch_of_any_capacity(device, dtype):
    alone = random_sites((3000,), 12)
    others = random_sites((500, 0, 700), 9, seed=1)
    batch = torch.cat([others[others[:, 0] == 0], alone + torch.tensor([1, 0, 0, 0]), others[others[:, 0] == 2]]).int()
    features = torch.randn(len(batch), 32, device="cuda").to(dtype)
    _, weight = operands(32, 96, 27, 1, dtype)
    start = int((batch[:, 0] == 0).sum())
    results = []
    for coordinates, x in ((batch, features), (alone, features[start : start + len(alone)].clone())):
        sites = sites_on_device(device, coordinates, 4)
        y = poisoned(sites.capacity, 96, dtype=dtype)
        sparse_conv(device, x, pack_weight(weight, dtype), mapped(device, sites, sites, SUBMANIFOLD[0]), sites.count, y)
        results.append(y[: len(coordinates)])

    assert torch.equal(results[0][start : start + len(alone)], results[1])


def test_tiles_follow_from_the_layer_alone():
    for dtype in DTYPES:
        for ci, co in WIDTHS:
            for tile in candidates(ci, co, dtype):
                assert tile.shared_bytes <= 99 * 1024  # what a block may have on every GPU since sm_80
            best = candidates(ci, co, dtype)[0]
            assert -(-co // best.n) * best.n < co + 32


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
    packed_geometry = pack_geometry(geometry).cuda()
    work = (ints(4 * capacity + table_slots(capacity)), ints(row_means_work(capacity, capacity)))

    def run() -> None:
        placement, sites, overflow = buffers
        voxelize(device, room, grid, placement, sites, work[0], overflow)
        row_means(device, room.points, placement.voxel_of_point, room.count, x, sites.count, work[1])
        forward_map(device, sites, sites, packed_geometry, kernel_map)
        sparse_conv(device, x, packed, kernel_map, sites.count, y)
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
