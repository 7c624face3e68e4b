"""What the CUDA backend decides before it touches a device: capacities, where buffers lie, what makes sites."""

import gc
import weakref
from dataclasses import replace
from itertools import pairwise
from math import prod
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lacuna_kernels import Precision, parse_graph, random_weights
from lacuna_kernels.cuda import front_steps, sparse_steps
from lacuna_kernels.cuda.arena import BufferSpec, Use, arrange, lifetimes, views
from lacuna_kernels.cuda.blueprint import Blueprint, draw
from lacuna_kernels.cuda.capacity import MIN_POINTS, Capacity, Sizes, power_of_two
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.front_steps import Front, maps_task, tiles_task
from lacuna_kernels.cuda.fusion import fuse
from lacuna_kernels.cuda.kernel_map import MapJob, map_work
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.cuda.site_steps import MapTask, TilesTask, is_dense, likely_rows, source_of
from lacuna_kernels.cuda.sparse_conv_choice import RESIDENT_TILES, WGMMA_TILES, ConvShape
from lacuna_kernels.cuda.sparse_conv_choice import candidates as choose
from lacuna_kernels.cuda.sparse_conv_tiles import Tile
from lacuna_kernels.cuda.steps import Weights, Writer, levels_of
from lacuna_kernels.cuda.tasks import Task
from lacuna_kernels.cuda.tile_order import TileOrder
from lacuna_kernels.graph import Graph
from lacuna_kernels.ops.coordinates import submanifold_geometry, unique_first
from lacuna_kernels.ops.sparse_conv import active_sites
from lacuna_kernels.types import Geometry, Level, Triple
from lacuna_kernels.zoo import centerpoint_encoder, minkunet
from tests.kernels.networks import cloud, document, node
from tests.kernels.small_networks import spreading
from tests.kernels.test_fusion import NETWORKS


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "floor", "most"),
    [(2, 2, 1, False, 1), (3, 2, 1, False, 8), (3, 2, 1, True, 1), (3, 1, 1, False, 27), (3, 2, 2, False, 27)],
)
def test_fan_out_counts_the_outputs_that_one_site_can_feed(
    size: int, stride: int, dilation: int, floor: bool, most: int
) -> None:
    geometry = Geometry((size,) * 3, (stride,) * 3, (1, 1, 1), (dilation,) * 3, floor)

    assert prod(geometry.fan_out) == most


def test_a_generative_convolution_leads_from_a_site_to_one_output_an_offset() -> None:
    assert prod(Geometry((2, 3, 1), (2, 2, 2), (0, 0, 0), (1, 1, 1), generative=True).fan_out) == 6


def test_levels_have_room_for_what_can_come_of_their_parents() -> None:
    types = minkunet(19).types
    room = Capacity(points=50_000, items=16)

    assert {room.of(kind) for kind in types.values() if kind.level is not None} == {50_000}


def test_growth_bounds_levels_that_spread() -> None:
    levels = {kind.level.name: kind.level for kind in centerpoint_encoder().types.values() if kind.level is not None}
    small, large = Capacity(16_384, 16), Capacity(16_384, 16, growth=4)

    assert small.sites(levels["grid"]) == 16_384
    assert small.sites(levels["down2"]) == 2 * 16_384
    assert large.sites(levels["down2"]) == 4 * 16_384
    assert small.grown(levels.values()) == large
    assert Capacity(16_384, 16, growth=8**4).grown(levels.values()) is None
    assert large.holds(small)
    assert not small.holds(large)


def test_capacities_are_powers_of_two_up_to_the_limit() -> None:
    sizes = Sizes(ragged=True, min_items=16, max_cost=100_000)

    assert sizes.capacity(1, 1) == Capacity(MIN_POINTS, 16)
    assert sizes.capacity(20_000, 17) == Capacity(32_768, 32)
    assert sizes.capacity(90_000, 1) == Capacity(100_000, 16)
    assert Sizes(ragged=False, min_items=1, max_cost=100).capacity(70, 70) == Capacity(1, 100)


NUMBERS = st.integers(1, 10**6)
BATCHES = st.tuples(NUMBERS, NUMBERS, st.integers(1, 8))


@given(st.booleans(), NUMBERS, BATCHES, BATCHES)
def test_a_plan_has_room_for_a_batch_if_it_holds_its_capacity(
    ragged: bool, most: int, planned: tuple[int, int, int], wanted: tuple[int, int, int]
) -> None:
    sizes = Sizes(ragged, 16 if ragged else 1, most)
    at_most = [
        (min(cost, most), items if ragged else min(cost, most), growth) for cost, items, growth in (planned, wanted)
    ]
    room = sizes.capacity(*at_most[0])

    assert sizes.has_room(room, *at_most[1]) == room.holds(sizes.capacity(*at_most[1]))


@given(st.integers(1, 2**40))
def test_power_of_two_is_the_smallest_that_is_enough(number: int) -> None:
    power = power_of_two(number)

    assert power >= number > power // 2


SIZES = st.integers(0, 2000)
PROGRAMS = st.lists(st.tuples(SIZES, st.sets(st.integers(0, 20), max_size=4)), min_size=1, max_size=20)


@given(PROGRAMS)
def test_buffers_alive_at_the_same_time_never_overlap(program: list[tuple[int, set[int]]]) -> None:
    uses = [
        Use([f"b{source}" for source in sources if source < step], {f"b{step}": BufferSpec((size,), torch.uint8)})
        for step, (size, sources) in enumerate(program)
    ]
    layout, spans = arrange(uses), lifetimes(uses)

    for first, (a, b) in spans.items():
        for second, (c, d) in spans.items():
            if first < second and a <= d and c <= b:
                low, high = sorted((first, second), key=lambda name: layout.offsets[name])
                end = layout.offsets[low] + max(1, program[int(low[1:])][0])
                assert end <= layout.offsets[high]


def drawn(graph: Graph, room: Capacity | None = None, precision: Precision = Precision.FP16) -> Blueprint:
    """A plan on paper: no step is run, so of the device only its limits are asked for."""
    layers = fuse(graph, random_weights(graph, 0), precision)
    device = SimpleNamespace(limits=DeviceLimits(132, 232_448, "sm_90"))
    return draw(cast(Device, device), graph, layers, Weights(torch.device("cpu")), room or Capacity(1000, 4))


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_read_what_earlier_steps_or_the_host_have_written(name: str) -> None:
    plan = drawn(NETWORKS[name]())
    there = {*plan.inputs, *plan.header.parts, *plan.status.parts}

    for step in plan.steps:
        there |= step.use.writes.keys()
        assert set(step.use.reads) <= there, step.name
    assert set(plan.results.values()) <= there


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
        layers = fuse(graph, random_weights(graph, 0), Precision.FP16)
        device = cast(Device, SimpleNamespace(limits=DeviceLimits(132, 232_448, "sm_90")))
        writer = Writer(device, graph.types, Weights(torch.device("cpu")), Capacity(1000, 4), layers)
        grid = next(kind.level for kind in graph.types.values() if kind.level is not None)

        front = Front.of(writer, grid, Task([], {"features": BufferSpec((1,), torch.float32)}, lambda b: None))

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
        layers = fuse(graph, random_weights(graph, 0), Precision.FP16)
        device = cast(Device, SimpleNamespace(limits=DeviceLimits(132, 232_448, "sm_90")))
        writer = Writer(device, graph.types, Weights(torch.device("cpu")), Capacity(1000, 4), layers)

        Front.of(writer, levels[0], Task([], {"features": BufferSpec((1,), torch.float32)}, lambda b: None))

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
    layers = fuse(graph, random_weights(graph, 0), Precision.FP16)
    device = cast(Device, SimpleNamespace(limits=DeviceLimits(132, 232_448, "sm_90")))
    writer = Writer(device, graph.types, Weights(torch.device("cpu")), Capacity(points, 4), layers)
    grid, coarse = levels_of(graph.types)

    front = Front.of(writer, grid, Task([], {"features": BufferSpec((1,), torch.float32)}, lambda b: None))

    volume, room = prod(kernel), writer.room.sites(coarse)
    assert [task.work for task in front.own] == [map_work(27, points)]
    works = [task.work for task in front.stages[0].maps]
    assert works == [map_work(27, room), map_work(volume, room, regions=regions)]


def all_read(front: Front) -> set[str]:
    tasks = [*front.own, *(task for stage in front.stages for task in (*stage.sites, *stage.maps))]
    return {name for task in tasks for name in task.reads}


def test_maps_share_memory_to_work_with() -> None:
    """Arenas as they are, so that one that grows is seen: MiB for 131,072 points of up to 16 clouds, in fp16."""
    found = {
        name: round(drawn(graph, Capacity(1 << 17, 16)).arena.bytes / 2**20)
        for name, graph in (("minkunet", minkunet(19)), ("centerpoint", centerpoint_encoder()))
    }

    assert found == {"minkunet": 751, "centerpoint": 520}


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


def test_most_layers_of_minkunet_take_tiles_of_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[object] = []

    def candidates(shape: ConvShape, limits: DeviceLimits) -> list[Tile]:
        taken.append(choose(shape, limits)[0])
        return choose(shape, limits)

    monkeypatch.setattr(sparse_steps, "candidates", candidates)

    drawn(minkunet(19), Capacity(1 << 17, 16))

    assert sum(tile in WGMMA_TILES for tile in taken) == 28
    # what has up to 64 channels and no shortcut, two that lead back, and the head
    assert sum(tile in RESIDENT_TILES for tile in taken) == 15
    assert len(taken) == 43


def test_what_only_the_host_reads_is_written_as_it_reads_it_by_tiles_whose_weights_stay() -> None:
    found = [drawn(graph, Capacity(1 << 17, 16)) for graph in (centerpoint_encoder(), minkunet(19, scores=True))]

    converted = [[step.name for step in plan.steps if step.name.startswith("convert")] for plan in found]
    assert [len(names) for names in converted] == [0, 1]  # scores are taken to the points first
    assert {found[0].outputs[buffer].dtype for buffer in found[0].results.values()} == {torch.float32}


def test_columns_of_a_concat_that_begin_off_a_piece_are_not_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, bool] = {}

    def candidates(shape: ConvShape, limits: DeviceLimits) -> list[Tile]:
        seen[shape.ci] = shape.aligned
        return choose(shape, limits)

    monkeypatch.setattr(sparse_steps, "candidates", candidates)
    cube = {"kernel_size": [3, 3, 3]}
    nodes = [
        node("grid", "voxelize", "points", voxel_size_m=[0.1, 0.1, 0.1]),
        node("a", "sparse_conv", "grid", out_channels=12, **cube),
        node("b", "sparse_conv", "grid", out_channels=64, **cube),
        node("c", "sparse_conv", "b", out_channels=8, **cube),
        node("both", "concat", "a", "b"),
        node("d", "sparse_conv", "both", out_channels=8, **cube),
        node("y", "sparse_conv", "c", out_channels=8, **cube),
    ]

    drawn(parse_graph(document(cloud("intensity"), nodes, "d", "y")))

    assert seen == {4: False, 64: False, 76: False, 8: True}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_that_is_dropped_leaves_nothing_behind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of a device is given back when nobody has it any more, not when cycles happen to be collected."""
    kept: list[weakref.ref[torch.Tensor]] = []

    def keep(self: Weights, on_device: torch.Tensor) -> torch.Tensor:
        alone = on_device.clone()  # on the CPU it may be the network's own
        kept.append(weakref.ref(alone))
        return alone

    monkeypatch.setattr(Weights, "keep", keep)
    gc.collect()
    gc.disable()
    try:
        plan = drawn(NETWORKS[name]())
        assert all(tensor() is not None for tensor in kept)
        del plan
        assert all(tensor() is None for tensor in kept)
    finally:
        gc.enable()


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
    graph = minkunet(5)
    device = cast(Device, SimpleNamespace(limits=DeviceLimits(132, 163_840, architecture)))
    layers = fuse(graph, random_weights(graph, 0), precision)

    plan = draw(device, graph, layers, Weights(torch.device("cpu")), Capacity(1000, 4))

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
    graph = centerpoint_encoder()
    layers = fuse(graph, random_weights(graph, 0), Precision.FP16)
    device = cast(Device, SimpleNamespace(limits=DeviceLimits(132, 232_448, "sm_90")))
    found = {}
    for points in (1000, 1 << 17):
        writer = Writer(device, graph.types, Weights(torch.device("cpu")), Capacity(points, 4), layers)
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


@pytest.mark.parametrize("reader, padding", [("sparse_conv", 3), ("linear", 0), ("layer_norm", 0)])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP32])
def test_rows_of_a_grid_are_padded_unless_their_reader_wants_no_gaps(reader, padding, precision) -> None:
    attributes = {
        "sparse_conv": {"out_channels": 8, "kernel_size": [3, 3, 3]},
        "linear": {"out_features": 8},
        "layer_norm": {},
    }[reader]
    nodes = [node("grid", "voxelize", "points", voxel_size_m=[0.1, 0.1, 0.1]), node("y", reader, "grid", **attributes)]

    plan = drawn(parse_graph(document(cloud("intensity", "time"), nodes, "y")), precision=precision)

    (spec,) = (step.use.writes["grid"] for step in plan.steps if "grid" in step.use.writes)
    assert spec == BufferSpec((1000, 5), DTYPES[precision], padding if precision is Precision.FP16 else 0)


def test_padded_rows_are_views_of_wider_ones() -> None:
    uses = [Use([], {"a": BufferSpec((3, 5), torch.float16, 3), "b": BufferSpec((3, 8), torch.float16)})]
    layout = arrange(uses)

    found = views(layout, uses, torch.zeros(layout.bytes, dtype=torch.uint8))

    assert (found["a"].shape, found["a"].stride()) == ((3, 5), (8, 1))
    assert (found["b"].shape, found["b"].stride()) == ((3, 8), (8, 1))


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


def test_a_chain_takes_the_memory_of_two_buffers() -> None:
    spec = BufferSpec((1000,), torch.float32)
    uses = [Use([f"b{i - 1}"] if i else [], {f"b{i}": spec}) for i in range(10)]
    layout = arrange(uses)

    assert layout.bytes == 2 * spec.bytes
    cut = views(layout, uses, torch.zeros(layout.bytes, dtype=torch.uint8))
    assert all(view.shape == (1000,) and view.dtype is torch.float32 for view in cut.values())


def test_edges_are_sorted_once_for_all_layers_and_count_as_points() -> None:
    plan = drawn(NETWORKS["rgcn"](), Capacity(1000, 4))

    steps = {step.name: step.use for step in plan.steps}
    assert [name for name in steps if name.startswith("pair")] == ["pair edges"]
    assert steps["pair edges"].writes["edges:map:rows"].shape == (4, 1000)
    assert plan.inputs["edges"] == BufferSpec((1000, 3), torch.int32)
    assert plan.header.parts.keys() >= {"nodes:offsets", "edges:offsets", "nodes:count", "edges:count"}
    assert Sizes.of(NETWORKS["rgcn"](), 1 << 20) == Sizes(ragged=True, min_items=16, max_cost=1 << 20)
