"""What comes before the convolutions of a grid: which sites and maps are made, when, and in which order tiles are."""

from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import cast

import pytest
import torch

from lacuna_kernels import Precision, parse_graph
from lacuna_kernels.cuda import front_steps, sparse_steps
from lacuna_kernels.cuda.arena import BufferSpec
from lacuna_kernels.cuda.blueprint import Blueprint
from lacuna_kernels.cuda.capacity import Capacity
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.front_steps import Front, maps_task, tiles_task
from lacuna_kernels.cuda.kernel_map import MapJob, map_work
from lacuna_kernels.cuda.site_steps import MapTask, TilesTask, is_dense, likely_rows, source_of
from lacuna_kernels.cuda.steps import levels_of
from lacuna_kernels.cuda.tile_order import TileOrder
from lacuna_kernels.ops.coordinates import submanifold_geometry, unique_first
from lacuna_kernels.ops.sparse_conv import active_sites
from lacuna_kernels.types import Geometry, Level, Triple
from lacuna_kernels.zoo import centerpoint_encoder, minkunet
from tests.kernels.drawn import drawn, front_of, writer_of
from tests.kernels.networks import cloud, document, node
from tests.kernels.small_networks import spreading


def test_each_grid_of_a_network_makes_its_own_sites_and_maps() -> None:
    shape = {"out_channels": 8, "kernel_size": [3, 3, 3]}
    nodes = [
        node("fine", "voxelize", "points", voxel_size_m=[0.1, 0.1, 0.1]),
        node("a", "sparse_conv", "fine", **shape),
        node("grid", "voxelize", "points", voxel_size_m=[0.2, 0.2, 0.2]),
        node("b", "sparse_conv", "grid", **shape),
    ]

    plan = drawn(parse_graph(document(cloud("intensity"), nodes, "a", "b")))

    assert [name.split(" (")[0] for name in made_in_front(plan) if name.endswith(":rows")] == ["map from grid to grid"]


def test_nothing_of_a_front_reads_what_is_made_beside_it_or_later() -> None:
    """CenterPoint's four levels overlap, so that three are made of others; those of MinkUNet are cells of the grid."""
    for graph, after_another in ((minkunet(5, width=0.25), 0), (centerpoint_encoder(channels=(4, 4, 8, 8)), 3)):
        grid = levels_of(graph.types)[0]

        front = front_of(writer_of(graph), graph)

        assert len(front.stages) == 1 + after_another
        made = {name for name in all_read(front) if name.startswith(f"{grid.name}:sites")}
        assert all(set(task.reads) <= made for task in front.own)
        made |= front.clear.makes.keys()
        for at_once in [tasks for stage in front.stages for tasks in (stage.sites, stage.maps)]:
            assert all(set(task.reads) <= made for task in at_once)
            made |= {name for task in at_once for name in task.makes}


def test_levels_are_dense_whose_inputs_make_several_sites_and_their_maps_are_made_so() -> None:
    for graph, dense in ((minkunet(5, width=0.25), [False] * 5), (centerpoint_encoder(), [False] + [True] * 4)):
        levels = levels_of(graph.types)
        writer = writer_of(graph)

        front_of(writer, graph)

        assert [is_dense(level) for level in levels] == dense
        cube = submanifold_geometry((3, 3, 3), (1, 1, 1))
        held = [key for key in writer.weights.held if key[:2] == ("slots", cube)]
        slots = {(parts, dense_too) for _, _, parts, dense_too in held}
        assert slots == {(1, False), (1, True) if dense[-1] else (3, False)}


@pytest.mark.parametrize(
    "kernel, points, regions",
    [((3, 3, 3), *each) for each in [(1000, 1), (1 << 17, 2), (1 << 19, 8), (1 << 21, 8)]]
    + [((1, 3, 3), 1 << 19, 1), ((5, 3, 3), 1 << 19, 8)],
)
def test_many_rows_of_dense_levels_are_put_in_order_region_by_region(
    kernel: tuple[int, int, int], points: int, regions: int
) -> None:
    """If keys have all their bits, which few offsets do not fill."""
    made = [
        node("grid", "voxelize", "points", voxel_size_m=[0.1, 0.1, 0.1]),
        node("first", "sparse_conv", "grid", out_channels=4, kernel_size=[3, 3, 3]),
        node("down", "sparse_conv", "first", out_channels=4, mode="strided", kernel_size=[3] * 3, stride=[2] * 3),
        node("same", "sparse_conv", "down", out_channels=4, kernel_size=list(kernel)),
    ]
    graph = parse_graph(document(cloud("intensity"), made, "same"))
    writer = writer_of(graph, Capacity(points, 4))

    front = front_of(writer, graph)

    volume, room = prod(kernel), writer.room.sites(levels_of(graph.types)[1])
    assert [task.work for task in front.own] == [map_work(27, points)]
    works = [task.work for task in front.stages[0].maps]
    assert works == [map_work(27, room), map_work(volume, room, regions=regions)]


def all_read(front: Front) -> set[str]:
    tasks = [*front.own, *(task for stage in front.stages for task in (*stage.sites, *stage.maps))]
    return {name for task in tasks for name in task.reads}


def test_maps_are_made_as_many_at_a_time_as_may_be_the_longest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[list[tuple[int, int]]] = []
    monkeypatch.setattr(front_steps, "make_maps", lambda device, jobs: turns.append(jobs))

    def one(number: int) -> MapTask:
        makes = {f"{number}": BufferSpec((1,), torch.int32)}
        return MapTask([f"{number}:in"], makes, number, lambda b, work: cast(MapJob, (number, len(work))), None)

    task = maps_task(cast(Device, None), [one(number) for number in range(1, 15)], "maps")
    task.run({name: torch.zeros(spec.shape) for name, spec in task.makes.items()})

    assert turns == [[(number, number) for number in range(14, 2, -1)], [(2, 2), (1, 1)]]
    assert [task.makes[f"maps.{lane}:work"].shape for lane in (0, 11)] == [(14,), (3,)]
    assert "maps.12:work" not in task.makes
    assert task.reads == [f"{number}:in" for number in range(1, 15)]


def made_in_front(plan: Blueprint) -> dict[str, BufferSpec]:
    """What the step of the grid's features makes, and what is beside it."""
    return {step.name: step for step in plan.steps}["grid"].use.writes


def test_levels_are_made_beside_the_convolutions_of_the_grid() -> None:
    plan = drawn(minkunet(5, width=0.25))

    names = [step.name for step in plan.steps]
    begin, end = names.index("grid"), names.index("beside grid: 0")
    touched = set(plan.steps[end].use.reads)
    made = touched & plan.steps[begin].use.writes.keys()

    assert names[begin + 1 : end] == ["stem1_relu", "stem2_relu"]
    assert {name.split(" (")[0] for name in made if name.endswith(":rows")} >= {"map from down1 to down1"}
    assert "grid:sites:cells" in touched  # nothing else may lie there before the end
    assert all(made.isdisjoint(step.use.reads) for step in plan.steps[begin + 1 : end])
    assert not made.isdisjoint(plan.steps[end + 1].use.reads)


def test_levels_that_are_made_of_others_are_waited_for_one_by_one() -> None:
    plan = drawn(centerpoint_encoder(channels=(4, 4, 8, 8)))

    names = [step.name for step in plan.steps]
    ends = [names.index(f"beside grid: {stage}") for stage in range(4)]

    assert [names[end + 1] for end in ends] == ["down2_relu", "down3_relu", "down4_relu", "features"]
    for end, later in pairwise(ends):
        still = {*plan.steps[later].use.reads}  # what the next stage touches: nothing else may lie there yet
        assert all(still.isdisjoint(step.use.writes) for step in plan.steps[end : later + 1])


@pytest.mark.parametrize("points, tiles", [(1 << 16, ["beside grid: 0, last"]), (1 << 17, [])])
def test_of_a_grid_without_other_levels_nothing_but_the_order_of_tiles_is_made_beside(points, tiles) -> None:
    shape = {"out_channels": 96, "kernel_size": [3, 3, 3]}
    nodes = [
        node("grid", "voxelize", "points", voxel_size_m=[0.1, 0.1, 0.1]),
        node("few", "sparse_conv", "grid", out_channels=32, kernel_size=[3, 3, 3]),
        node("first", "sparse_conv", "few", **shape),
        node("second", "sparse_conv", "first", **shape),
    ]

    plan = drawn(parse_graph(document(cloud("intensity"), nodes, "second")), Capacity(points, 4))

    names = [step.name for step in plan.steps]
    assert names[names.index("few") :][:3] == ["few", *tiles, "first", "second"][:3]
    assert [name for name in names if name.startswith("beside")] == tiles
    read = [name for step in plan.steps for name in step.use.reads if name.endswith(":tiles")]
    assert bool(read) == bool(tiles)


def told(plan: Blueprint) -> dict[str, int]:
    """How many convolutions are told in which order to make their tiles, by the level of these; each is waited for."""
    found: dict[str, int] = {}
    for at, step in enumerate(plan.steps):
        tiles = {name for name in step.use.reads if name.endswith(":tiles")} - step.use.writes.keys()
        if not tiles or step.name.startswith("beside"):
            continue
        ends = [one for one in plan.steps[:at] if one.name.endswith(", last") and tiles <= {*one.use.reads}]
        assert len(ends) == 1
        level = tiles.pop().split(" (")[0].split(" to ")[1]
        found[level] = found.get(level, 0) + 1
    return found


@pytest.mark.parametrize(
    "build, points, levels",
    [
        (minkunet, 1 << 17, {"down1": 4, "down2": 5, "down3": 8, "down4": 4}),
        (minkunet, 1 << 18, {"down2": 1, "down4": 4}),  # others have too many tiles by then, in parts or not
        (minkunet, 1 << 20, {}),
        (centerpoint_encoder, 1 << 17, {"down4": 4}),
        (centerpoint_encoder, 1 << 19, {}),
    ],
)
def test_convolutions_of_few_tiles_make_the_longest_first(build, points, levels) -> None:
    graph = build(19) if build is minkunet else build()

    found = told(drawn(graph, Capacity(points, 16)))

    assert found == levels


@pytest.mark.parametrize(
    "precision, architecture", [(Precision.FP32, "sm_90"), (Precision.TF32, "sm_90"), (Precision.FP16, "sm_80")]
)
def test_no_order_of_tiles_is_made_that_nobody_can_read(precision, architecture) -> None:
    plan = drawn(minkunet(5), precision=precision, limits=DeviceLimits(132, 163_840, architecture))

    assert not any(name.endswith(":tiles") for step in plan.steps for name in step.use.writes)


@pytest.mark.parametrize("points, likely", [(1 << 17, 24_576), (1 << 19, 1 << 16)])
def test_dense_levels_have_a_block_for_each_tile_if_these_are_in_order(points, likely, monkeypatch) -> None:
    """Half as many rows more are likely there, for which there are fewer blocks if nothing is told."""
    asked: dict[tuple[int, bool], set[int]] = {}

    def launched(device, x, weight, kernel_map, count, y, *, likely, **more) -> None:
        asked.setdefault((weight.channels, kernel_map.tiles is not None), set()).add(likely)

    class Any(dict[str, torch.Tensor]):
        def __missing__(self, name: str) -> torch.Tensor:
            return torch.empty(0)

    monkeypatch.setattr(sparse_steps, "launch_sparse_conv", launched)
    plan = drawn(centerpoint_encoder(), Capacity(points, 16))

    for step in plan.steps:
        if step.name in plan.convolutions:
            step.run(Any())

    in_order = points == 1 << 17
    assert likely in asked[128, in_order]
    assert not any(told for channels, told in asked if channels < 128 or not in_order)
    assert asked[64, False] == {points // 4, points // 8}  # submanifold ones, and the one that makes the last level


def test_a_level_has_no_more_likely_rows_than_room() -> None:
    graph, found = centerpoint_encoder(), {}
    for points in (1000, 1 << 17):
        writer = writer_of(graph, Capacity(points, 4))
        found[points] = [likely_rows(writer, level) for level in levels_of(graph.types)[:3]]

    assert found == {1000: [1000, 750, 375], 1 << 17: [1 << 17, 98_304, 49_152]}


def test_tiles_are_put_in_order_for_as_many_maps_at_a_time_as_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[list[int]] = []
    monkeypatch.setattr(front_steps, "order_tiles", lambda device, orders: turns.append(orders))

    def one(number: int) -> MapTask:
        makes = {f"{number}": BufferSpec((1,), torch.int32)}
        order = TilesTask([f"{number}:in"], makes, lambda b: cast(TileOrder, number))
        return MapTask([], {}, 0, lambda b, work: cast(MapJob, None), order)

    task = tiles_task(cast(Device, None), [one(number) for number in range(14)])
    assert task is not None
    task.run({})

    assert turns == [[*range(12)], [12, 13]]
    assert [*task.writes] == [f"{number}" for number in range(14)]
    assert task.reads == [f"{number}:in" for number in range(14)]
    assert tiles_task(cast(Device, None), []) is None


def test_sites_that_spread_at_stride_one_have_a_map_from_either_level() -> None:
    plan = drawn(spreading())

    maps = [name for name in made_in_front(plan) if name.endswith(":rows")]
    assert [name.split(" (")[0] for name in maps] == ["map from grid to spread", "map from spread to spread"]


def test_a_generative_convolution_makes_its_sites_and_leads_from_its_inputs() -> None:
    shape = {"out_channels": 8, "kernel_size": [2, 2, 2], "stride": [2, 2, 2]}
    nodes = [
        node("grid", "voxelize", "points", voxel_size_m=[0.1, 0.1, 0.1]),
        node("down", "sparse_conv", "grid", mode="strided", **shape),
        node("up", "sparse_conv", "down", mode="generative", **shape),
    ]

    plan = drawn(parse_graph(document(cloud("intensity"), nodes, "up")))

    assert {"down:sites:cells", "up:sites:cells", "map of up:rows"} <= set(made_in_front(plan))
    assert "map of up:order" in {step.name: step for step in plan.steps}["up"].use.reads


def level(
    name: str,
    parent: Level,
    kernel: Triple,
    stride: Triple,
    *,
    padding: Triple = (0, 0, 0),
    dilation: Triple = (1, 1, 1),
    floor: bool = False,
    generative: bool = False,
    shape: Triple | None = None,
) -> Level:
    geometry, (x, y, z) = Geometry(kernel, stride, padding, dilation, floor, generative), parent.stride
    return Level(name, (x * stride[0], y * stride[1], z * stride[2]), shape, "grid", parent, geometry)


GRID = Level("grid", (1, 1, 1), None, "grid")
ONES, TWOS = (1, 1, 1), (2, 2, 2)
HALF = level("half", GRID, TWOS, TWOS)


@pytest.mark.parametrize(
    ("made", "source", "stride"),
    [
        (HALF, GRID, (2, 2, 2)),
        (level("cells", HALF, (2, 3, 1), (2, 3, 1)), GRID, (4, 6, 2)),
        (level("floors", HALF, (3, 3, 3), (2, 2, 2), floor=True), GRID, (4, 4, 4)),
        (level("overlap", HALF, (3, 3, 3), (2, 2, 2)), HALF, (2, 2, 2)),
        (level("padded", HALF, (2, 2, 2), (2, 2, 2), padding=(1, 0, 0)), HALF, (2, 2, 2)),
        (level("bounded", HALF, (2, 2, 2), (2, 2, 2), shape=(9, 9, 9)), HALF, (2, 2, 2)),
        (level("dilated", HALF, (2, 2, 2), (2, 2, 2), dilation=(2, 1, 1)), HALF, (2, 2, 2)),
        (level("generated", HALF, (2, 2, 2), (2, 2, 2), generative=True), HALF, (2, 2, 2)),
        (level("cells of", level("generated", HALF, ONES, ONES, generative=True), TWOS, TWOS), None, (2, 2, 2)),
    ],
    ids=lambda value: value.name if isinstance(value, Level) else None,
)
def test_sites_are_made_of_the_finest_whose_cells_they_are(made: Level, source: Level | None, stride: Triple):
    assert (source_of(made)[0], source_of(made)[1].stride) == (source or made.parent, stride)


def test_sites_made_of_the_finest_are_those_of_the_parent_in_its_order():
    quarter = level("quarter", HALF, (2, 2, 2), (2, 2, 2))
    xyz = torch.randint(-40, 40, (3000, 3), generator=torch.Generator().manual_seed(0))
    sites = torch.cat([torch.arange(3000)[:, None] // 1500, xyz], 1).int()
    finest = sites[unique_first(sites)[0]]

    source, geometry = source_of(quarter)
    direct = active_sites(finest, replace(quarter, parent=source, geometry=geometry))

    assert torch.equal(direct, active_sites(active_sites(finest, HALF), quarter))
