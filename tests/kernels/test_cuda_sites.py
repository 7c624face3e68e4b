"""Kernels for sites and maps on a GPU against the reference ops: whole numbers exactly."""

from functools import partial

import pytest
import torch
from torch import Tensor

from lacuna_kernels.cuda.key_order import Ordering, all_of, key_bins, order_by_keys, order_work
from lacuna_kernels.cuda.row_means import row_means, row_means_work
from lacuna_kernels.cuda.scan import exclusive_scan, scan_work
from lacuna_kernels.cuda.sort import sort, sort_work
from lacuna_kernels.cuda.voxelize import Grid
from lacuna_kernels.ops import coordinates as reference
from lacuna_kernels.ops.sparse_conv import active_sites
from lacuna_kernels.types import Level, Value
from tests.cases import CLOUDS
from tests.kernels.device_sites import (
    GENERATIVE,
    GRIDS,
    NONSENSE,
    SPARE,
    STRIDED,
    SUBMANIFOLD,
    check_found,
    check_map,
    cloud_on_device,
    counted,
    grid_of,
    ints,
    mapped,
    poisoned,
    random_sites,
    region_rows,
    sites_on_device,
    strided,
    voxelized,
    voxelized_by_reference,
)

pytestmark = pytest.mark.gpu

SITES = [
    pytest.param(random_sites((400, 1, 0, 300), 5), id="dense"),
    pytest.param(random_sites((400, 200), 40), id="thin"),
    pytest.param(random_sites((300,), 4, centre=2**30 - 6), id="largest"),
    pytest.param(random_sites((300,), 4, centre=-(2**30) + 6), id="smallest"),
    pytest.param(random_sites((200, 200), 2**30 - 1), id="huge extent"),
    pytest.param(random_sites((1,), 3), id="one"),
    pytest.param(random_sites((0, 0), 3), id="none"),
]


def within(coordinates: Tensor, limit: int) -> Tensor:
    """The sites whose coordinates may be multiplied."""
    return coordinates[(coordinates[:, 1:].abs() < limit).all(1)]


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


@pytest.mark.parametrize(
    "points, rows",
    [(0, 5), (1, 1), (2048, 255), (2049, 256), (262_000, 70_000), (262_100, 70_000), (300_000, 70_000), (50_000, 1)],
)
def test_points_are_sorted_by_row_and_keep_their_order(device, points, rows):
    row_of_point = torch.randint(-1, rows, (points + SPARE,), dtype=torch.int32, device="cuda")
    order = torch.sort(torch.where(row_of_point < 0, rows, row_of_point)[:points], stable=True).indices

    keys, found = sort(device, row_of_point, counted(points), rows.bit_length(), ints(sort_work(len(row_of_point))))

    assert torch.equal(found[:points].long(), order)
    assert torch.equal(keys[:points], row_of_point[order])


def times_run(device, run, *, captured):
    """Run launches on a stream of their own, and if they are to be captured once more by a graph; returns how often."""
    stream = device.new_stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    if not captured:
        return 1
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    graph.replay()
    torch.cuda.synchronize()
    return 2


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("launches", [0, 1, 5])
def test_launches_made_at_once_come_after_what_was_before_and_before_what_follows(device, launches, captured):
    parts, total = torch.zeros(launches, 1 << 20, device="cuda"), torch.zeros(1 << 20, device="cuda")
    source = torch.zeros(1 << 20, device="cuda")

    def run() -> None:
        source.add_(1)
        device.at_once([partial(torch.add, source, index, out=parts[index]) for index in range(launches)])
        torch.sum(parts, 0, out=total)

    done = times_run(device, run, captured=captured)

    assert bool((total == launches * done + sum(range(launches))).all())


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_launches_beside_others_are_over_at_their_end(device, captured, named):
    size = 1 << 22
    source, one, two, three, four, five, six, total = (torch.zeros(size, device="cuda") for _ in range(8))

    def others() -> None:
        torch.add(source, 3, out=two)
        torch.add(source, 4, out=six)

    def run() -> None:
        source.add_(1)
        beside = [partial(torch.add, source, number, out=one) for number in range(20)]
        stages = [
            (lambda: [launch() for launch in beside], partial(torch.add, source, 5, out=three), None),
            (partial(torch.mul, one, 2, out=four), lambda: None, partial(torch.add, four, six, out=five)),
        ]
        device.start_beside(stages, others)
        two.mul_(2)
        device.end_beside(0)
        torch.add(one, two, out=total)
        total.add_(three)
        if named:
            device.end_beside(1)
            total.add_(four)
            device.end_beside(1, last=True)
        else:
            device.end_beside()
            total.add_(four)
        total.add_(five)

    done = times_run(device, run, captured=captured)

    expected = done + 19 + 2 * (done + 3) + done + 5 + 2 * (done + 19) + 2 * (done + 19) + done + 4
    assert bool((total == expected).all())


def test_a_launch_that_fails_leaves_the_others_joined(device):
    y, stream = torch.zeros(1 << 24, device="cuda"), device.new_stream()
    torch.cuda.synchronize()

    def fail() -> None:
        raise ValueError("no such kernel")

    with torch.cuda.stream(stream), pytest.raises(ValueError, match="no such kernel"):
        device.at_once([lambda: None, lambda: y.fill_(1), fail])
    stream.synchronize()

    assert bool((y == 1).all())


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
    wide, columns = poisoned(sites.capacity, cloud.data.shape[1] + 4), cloud.data.shape[1]
    y, work = wide[:, :columns], ints(row_means_work(len(points.points), sites.capacity))
    given = (points.points, placement.voxel_of_point, points.count, y, sites.count, work)
    row_means(device, *given, first_only=grid.get("reduce") == "first", padding=3)

    assert not bool(wide[:m, columns : columns + 3].any())
    assert bool(wide[:, columns + 3].isnan().all()) and bool(wide[m:].isnan().all())

    assert int(sites.count) == m
    assert not bool(overflow)
    assert torch.equal(sites.coordinates[:m].cpu(), expected.coordinates)
    assert bool((sites.coordinates[m:] == NONSENSE).all())
    assert torch.equal(sites.offsets[: len(expected.offsets)].cpu().long(), expected.offsets)
    assert bool((sites.offsets[len(expected.offsets) :] == m).all())
    check_found(sites)
    assert torch.equal(placement.voxel_of_point[:n].cpu().long(), where.voxel_of_point)
    assert torch.equal(placement.position[:n].cpu(), where.position)
    assert torch.equal(y[:m].cpu(), expected.data)
    assert bool(y[m:].isnan().all())


@pytest.mark.parametrize("points, voxels", [(100_000, 1), (1_000_000, 1), (300_000, 64)])
def test_voxels_of_a_large_cloud_may_hold_thousands_of_points_each(device, points, voxels):
    torch.manual_seed(points)
    data = torch.rand(points, 4) * torch.tensor([0.5 * voxels, 0.5, 0.5, 1.0])  # a row of voxels
    cloud = Value(data, torch.tensor([0, points]))
    on_device = cloud_on_device(cloud)

    placement, sites, _ = voxelized(device, on_device, Grid((0, 0, 0), (0.5, 0.5, 0.5)))
    y = poisoned(sites.capacity, 4)
    work = ints(row_means_work(len(on_device.points), sites.capacity))
    row_means(device, on_device.points, placement.voxel_of_point, on_device.count, y, sites.count, work)

    expected, where = voxelized_by_reference({"voxel_size_m": (0.5, 0.5, 0.5)}, cloud)
    assert int(sites.count) == voxels
    assert torch.equal(placement.voxel_of_point[:points].cpu().long(), where.voxel_of_point)
    assert torch.equal(y[:voxels].cpu(), expected.data)


@pytest.mark.parametrize("room", [1, 50, 99])
def test_too_many_voxels_raise_the_flag_and_stay_in_their_room(device, room):
    cloud = Value(torch.arange(100.0)[:, None].expand(100, 3).contiguous(), torch.tensor([0, 60, 100]))

    placement, sites, overflow = voxelized(device, cloud_on_device(cloud), Grid((0, 0, 0), (1, 1, 1)), room)

    assert bool(overflow)
    assert int(sites.count) == room
    found = placement.voxel_of_point[:100]
    assert sorted(found[found >= 0].tolist()) == list(range(room))
    assert bool((sites.heads[0].flatten()[::2] < room).all())


@pytest.mark.parametrize("shape", [None, (4, 5, 6)], ids=["unbounded", "bounded"])
@pytest.mark.parametrize("coordinates", SITES)
@pytest.mark.parametrize("geometry", [*STRIDED, *GENERATIVE], ids=str)
def test_sites_of_a_level_are_those_of_the_reference_and_in_its_order(device, coordinates, geometry, shape):
    if geometry.generative:
        coordinates = within(coordinates, 2**28)
    level = Level("made", geometry.stride, shape, "grid", geometry=geometry)
    expected = active_sites(coordinates, level)
    m = len(expected)

    found, overflow = strided(device, sites_on_device(device, coordinates, 4), geometry, shape, m + SPARE)

    assert not bool(overflow)
    assert int(found.count) == m
    assert torch.equal(found.coordinates[:m].cpu(), expected)
    check_found(found)
    assert torch.equal(found.offsets[:5].cpu().long(), reference.count_offsets(expected, 4))


@pytest.mark.parametrize("regions", [1, 3])
@pytest.mark.parametrize("sizes", [[0], [1], [3000], [300_000], [5, 70_000, 0, 3000, *range(8)]], ids=str)
def test_rows_are_in_the_order_of_their_keys(device, sizes, regions):
    sets, orderings = [], []
    for at, n in enumerate(sizes):
        parts = 1 + at % 2 * 2
        keys = torch.randint(0, 1 << 24, (n,), dtype=torch.int32) & (0xFF0103 if parts > 1 else 0x8F1F)
        given = torch.cat([keys, torch.full((SPARE,), NONSENSE, dtype=torch.int32)]).cuda()
        bins = key_bins(16, parts, regions if parts == 1 else 1)
        work = ints(order_work(n + SPARE, bins, parts))
        work[:bins] = 0
        orderings.append(Ordering(given, counted(n), ints(parts, n + SPARE), ints(parts), bins, work))
        sets.append((keys, parts))

    order_by_keys(device, orderings, all_of([ordering.packed() for ordering in orderings]))

    for (keys, parts), made in zip(sets, orderings, strict=True):
        n = len(keys)
        for part in range(parts):
            size = max(1, region_rows(n, n + SPARE, regions if parts == 1 else 1))
            found = keys >> 8 * part & 255 if parts > 1 else torch.arange(n) // size << 16 | keys
            rows = made.order[part, :n].cpu().long()
            assert torch.equal(found[rows], found.sort().values)
            assert torch.equal(rows.sort().values, torch.arange(n))
            if parts > 1:
                assert int(made.ones[part]) == int((found == 0).sum())
        assert bool((made.order[:, n:] == NONSENSE).all())


@pytest.mark.parametrize("room", [1, 100])
def test_too_many_strided_sites_raise_the_flag_and_stay_in_their_room(device, room):
    coordinates = random_sites((3000,), 500)
    geometry = STRIDED[1]
    expected = active_sites(coordinates, Level("down", geometry.stride, None, "grid", geometry=geometry))

    found, overflow = strided(device, sites_on_device(device, coordinates, 1), geometry, None, room)

    assert len(expected) > 2 * room + 1024
    assert bool(overflow)
    assert int(found.count) <= room
    assert bool((found.heads[0].flatten()[::2] < room).all())


IN_PARTS = [(geometry, 1) for geometry in SUBMANIFOLD] + [(SUBMANIFOLD[0], 3)]
STRIDED_IN_PARTS = [(geometry, 1) for geometry in STRIDED] + [
    (geometry, 3) for geometry in STRIDED if geometry.volume == 27
]


@pytest.mark.parametrize("geometry, parts", IN_PARTS, ids=str)
@pytest.mark.parametrize("coordinates", SITES)
def test_submanifold_maps_are_those_of_the_reference(device, coordinates, geometry, parts):
    sites = sites_on_device(device, coordinates, 4)

    found = mapped(device, sites, sites, geometry, parts=parts)

    check_map(found, reference.kernel_map(coordinates, coordinates, geometry), geometry)


@pytest.mark.parametrize("geometry, parts", STRIDED_IN_PARTS, ids=str)
@pytest.mark.parametrize("coordinates", SITES)
def test_strided_and_inverse_maps_are_those_of_the_reference(device, coordinates, geometry, parts):
    coarse = active_sites(coordinates, Level("down", geometry.stride, None, "grid", geometry=geometry))
    forward = reference.kernel_map(coordinates, coarse, geometry)
    inputs = sites_on_device(device, coordinates, 4)
    outputs, _ = strided(device, inputs, geometry, None, len(coarse) + SPARE)

    check_map(mapped(device, inputs, outputs, geometry, parts=parts), forward, geometry)
    backward = mapped(device, outputs, inputs, geometry, backward=True)
    check_map(backward, reference.inverse_map(forward, len(coordinates)), geometry)


@pytest.mark.parametrize("geometry", GENERATIVE, ids=str)
@pytest.mark.parametrize("coordinates", SITES)
def test_generative_maps_are_those_of_the_reference(device, coordinates, geometry):
    coarse = within(coordinates, 2**28)
    fine = active_sites(coarse, Level("up", geometry.stride, None, "grid", geometry=geometry))
    inputs = sites_on_device(device, coarse, 4)
    outputs, _ = strided(device, inputs, geometry, None, len(fine) + SPARE)

    found = mapped(device, inputs, outputs, geometry, backward=True)

    check_map(found, reference.kernel_map(coarse, fine, geometry), geometry)
