"""What the CUDA backend decides before it touches a device: capacities, steps, and where buffers lie."""

import gc
import weakref
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lacuna_kernels import Precision, parse_graph
from lacuna_kernels.cuda import sparse_steps
from lacuna_kernels.cuda.arena import BufferSpec, Use, arrange, lifetimes, views
from lacuna_kernels.cuda.capacity import MIN_POINTS, Capacity, Sizes, power_of_two
from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.cuda.sparse_conv_choice import RESIDENT_TILES, WGMMA_TILES, ConvShape
from lacuna_kernels.cuda.sparse_conv_choice import candidates as choose
from lacuna_kernels.cuda.sparse_conv_tiles import Tile
from lacuna_kernels.cuda.steps import Weights
from lacuna_kernels.types import Geometry
from lacuna_kernels.zoo import centerpoint_encoder, minkunet
from tests.kernels.drawn import drawn
from tests.kernels.networks import cloud, document, node
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


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_read_what_earlier_steps_or_the_host_have_written(name: str) -> None:
    plan = drawn(NETWORKS[name]())
    there = {*plan.inputs, *plan.header.parts, *plan.status.parts}

    for step in plan.steps:
        there |= step.use.writes.keys()
        assert set(step.use.reads) <= there, step.name
    assert set(plan.results.values()) <= there


def test_maps_share_memory_to_work_with() -> None:
    """Arenas as they are, so that one that grows is seen: MiB for 131,072 points of up to 16 clouds, in fp16."""
    found = {
        name: round(drawn(graph, Capacity(1 << 17, 16)).arena.bytes / 2**20)
        for name, graph in (("minkunet", minkunet(19)), ("centerpoint", centerpoint_encoder()))
    }

    assert found == {"minkunet": 751, "centerpoint": 520}


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
