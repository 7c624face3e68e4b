"""The CUDA backend gives what the CPU gives: any network, any batch, alone or together, whatever plan it runs on."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from bench.gpu import pinned
from lacuna_kernels import (
    Axis,
    Backend,
    Batch,
    CapacityExceeded,
    DeviceOutOfMemory,
    DType,
    Graph,
    Model,
    Options,
    Precision,
    Program,
    Unsupported,
    Value,
    collate,
    memory_use,
    open_backend,
    parse_graph,
    random_weights,
    split,
)
from lacuna_kernels.cuda.lowering import lowering
from lacuna_kernels.graph import Node
from lacuna_kernels.zoo import centerpoint_encoder, kronecker_mlp, minkunet, rgcn
from tests.cases import CLOUDS, GRAPHS, CloudCase, GraphCase, assert_close, assert_labels_follow, tolerance
from tests.kernels.networks import centerpoint_head, cloud, document, gpt2_block, graph_residual, node, spvcnn, vit
from tests.kernels.random_networks import random_network

SMALL = (8, 8, 16, 16, 24, 24, 16, 8, 8)
gpu = pytest.mark.gpu


def small_minkunet() -> Graph:
    graph = minkunet(5, channels=SMALL, blocks=(1,) * 8, voxel_size_m=0.2)
    return parse_graph(graph.model_dump(mode="json") | {"outputs": {"labels": {}, "logits": {}, "head": {}}})


def spreading() -> Graph:
    """A strided convolution of stride 1 makes sites, on which a submanifold one of the same geometry follows."""
    shape = {"out_channels": 8, "kernel_size": [3, 3, 3]}
    nodes = [
        node("grid", "voxelize", "points", voxel_size_m=[0.3, 0.3, 0.3]),
        node("spread", "sparse_conv", "grid", mode="strided", padding=[1, 1, 1], **shape),
        node("y", "sparse_conv", "spread", **shape),
    ]
    return parse_graph(document(cloud("intensity"), nodes, "y"))


def summed() -> Graph:
    """A norm after a sum with a shortcut, bias and residual beside one, and labels of points, some of them outside."""
    shape = {"out_channels": 32, "kernel_size": [3, 3, 3]}
    nodes = [
        node("grid", "voxelize", "points", voxel_size_m=[0.3, 0.3, 0.3], range_m=[-1.5, -1.5, -1.5, 1.5, 1.5, 1.5]),
        node("x", "sparse_conv", "grid", activation="relu", **shape),
        node("a", "sparse_conv", "x", **shape),
        node("b", "sparse_conv", "x", **shape | {"kernel_size": [1, 1, 1]}),
        node("both", "add", "a", "b"),
        node("norm", "batch_norm", "both"),
        node("more", "add", "norm", "x"),
        node("y", "silu", "more"),
        node("head", "linear", "y", out_features=5),
        node("logits", "devoxelize", "head", "grid", mode="nearest"),
        node("labels", "argmax", "logits"),
    ]
    return parse_graph(document(cloud("intensity"), nodes, "labels", "head"))


@gpu
@pytest.mark.parametrize("name", ["minkunet", "head", "mlp", "vit"])
def test_memory_is_what_was_worked_out_on_paper(cuda_backend: Backend, name: str) -> None:
    graph = NETWORKS[name]()
    model, options = Model(graph, random_weights(graph, 0)), Options(Precision.FP16, max_cost=4096, initial_cost=4096)
    ragged = any(kind.axis.ragged for kind in graph.input_value_types.values())

    program = cuda_backend.compile(graph, model.weights, options)

    use = memory_use(model, options, [4096 if ragged else 1])
    assert program.memory_bytes == use.weights + use.plans[0][1]
    program.close()


def selected() -> Graph:
    """Features are permuted, padded and cut between two linear layers."""
    nodes = [
        node("up", "linear", "x", out_features=24, activation="relu"),
        node("mixed", "select_features", "up", indices=[*range(23, -1, -1), -1, -1, 7]),
        node("down", "linear", "mixed", out_features=8),
        node("y", "select_features", "down", indices=[0, 1, 2, 3, 4]),
    ]
    return parse_graph(document({"x": {"axis": "row", "shape": [12]}}, nodes, "y", "down"))


def timed() -> Graph:
    """Points of five columns: rows of one grid are read by what wants no gaps, those of the other by convolutions."""
    shape = {"out_channels": 8, "kernel_size": [3, 3, 3]}
    nodes = [
        node("grid", "voxelize", "points", voxel_size_m=[0.5, 0.5, 0.5]),
        node("normal", "layer_norm", "grid"),
        node("linear", "linear", "grid", out_features=16),
        node("near", "sparse_conv", "grid", **shape),
        node("coarse", "voxelize", "points", voxel_size_m=[0.7, 0.7, 0.7]),
        node("far", "sparse_conv", "coarse", **shape),
        node("pooled", "global_pool", "coarse", mode="max"),
    ]
    return parse_graph(
        document(cloud("intensity", "time"), nodes, "normal", "linear", "near", "coarse", "far", "pooled")
    )


NETWORKS: dict[str, Callable[[], Graph]] = {
    "timed": timed,
    "minkunet": small_minkunet,
    "wide": lambda: minkunet(5, (32, 64, 64, 96, 128, 128, 96, 64, 64), (1,) * 8, voxel_size_m=0.5),
    "centerpoint": lambda: centerpoint_encoder(channels=(8, 8, 16, 16), columns=("x", "y", "z", "intensity")),
    "spvcnn": lambda: parse_graph(spvcnn()),
    "head": lambda: parse_graph(centerpoint_head()),
    "spreading": spreading,
    "summed": summed,
    "mlp": lambda: kronecker_mlp([[(1, 16, 8, 2), (2, 8, 16, 1)], [(1, 8, 8, 2)]], 7, normalise=True),
    "selected": selected,
    "vit": lambda: parse_graph(vit()),
    "gpt2": lambda: parse_graph(gpt2_block()),
}
CLOUD_NETWORKS = ["minkunet", "wide", "centerpoint", "spvcnn", "head", "spreading", "summed", "timed"]
DENSE_NETWORKS = ["mlp", "selected", "vit", "gpt2"]


def wide_rgcn(relations: int) -> Graph:
    """Wide enough for every kind of tile, with the scores that labels can be held against."""
    graph = rgcn(5, 8, relations, hidden=72, layers=3)
    return parse_graph(graph.model_dump(mode="json") | {"outputs": {"label": {}, "probabilities": {}, "logits": {}}})


GRAPH_NETWORKS: dict[str, Callable[[int], Graph]] = {
    "rgcn": wide_rgcn,
    "residual": lambda relations: parse_graph(graph_residual(relations)),
}
"""By how many kinds of edges there are."""


FITTING = [
    pytest.param(case, precision, id=f"{case}-{precision}")
    for case in CLOUDS
    for precision in Precision
    if precision is not Precision.FP16 or max(map(abs, case.centre_m)) < torch.finfo(torch.float16).max
]
"""Clouds that a precision can hold: a coordinate is a feature too."""

Compiled = Callable[..., Program]


@pytest.fixture
def compiled(cuda_backend: Backend) -> Iterator[Compiled]:
    """Compiles a network, and closes it when the test is over."""
    programs = []

    def build(graph: Graph, precision: Precision, **options: int) -> Program:
        programs.append(cuda_backend.compile(graph, random_weights(graph, 1), Options(precision, **options)))
        return programs[-1]

    yield build
    for program in programs:
        program.close()


def inputs(graph: Graph, case: CloudCase | int, seed: int = 0) -> dict[str, Value]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, kind in graph.input_value_types.items():
        if kind.axis is Axis.POINT:
            assert isinstance(case, CloudCase)
            found[name] = case.value(kind.channels, seed)
        else:
            assert isinstance(case, int)
            found[name] = Value(torch.randn(case, *kind.shape, generator=generator))
    return found


def expected_of(graph: Graph, batch: Batch) -> Mapping[str, Value]:
    return open_backend("cpu").compile(graph, random_weights(graph, 1), Options()).submit(batch).result().values


def assert_agree(graph: Graph, found: Mapping[str, Value], expected: Mapping[str, Value], relative: float) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        if value.offsets is not None:
            assert torch.equal(found[name].offsets, value.offsets), name
        if value.coordinates is not None:
            assert torch.equal(found[name].coordinates, value.coordinates), name
        source = graph.by_name[name].inputs[0]
        if graph.types[name].dtype.is_float:
            assert_close(found[name].data, value.data, relative)
        elif source in expected and len(value.data):
            assert found[name].data.dtype is value.data.dtype
            assert_labels_follow(found[name].data, expected[source].data, relative)


def assert_same_bits(found: Mapping[str, Value], expected: Mapping[str, Value]) -> None:
    for name, value in expected.items():
        assert torch.equal(found[name].data, value.data), name
        if value.coordinates is not None:
            assert torch.equal(found[name].coordinates, value.coordinates), name


@gpu
@pytest.mark.parametrize(("case", "precision"), FITTING)
@pytest.mark.parametrize("network", CLOUD_NETWORKS)
def test_clouds_give_what_the_cpu_gives(
    compiled: Compiled, network: str, case: CloudCase, precision: Precision
) -> None:
    graph = NETWORKS[network]()
    batch = inputs(graph, case)
    program = compiled(graph, precision)

    found = program.submit(batch).result().values

    assert_agree(graph, found, expected_of(graph, batch), tolerance(precision, 1000, layers=len(graph.nodes)))


@gpu
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("case", GRAPHS, ids=str)
@pytest.mark.parametrize("network", GRAPH_NETWORKS)
def test_graphs_give_what_the_cpu_gives(
    compiled: Compiled, network: str, case: GraphCase, precision: Precision
) -> None:
    graph, batch = GRAPH_NETWORKS[network](case.relations), case.batch(8)
    program = compiled(graph, precision)

    found = program.submit(batch).result().values

    assert_agree(graph, found, expected_of(graph, batch), tolerance(precision, 1000, layers=len(graph.nodes)))


@gpu
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("network", GRAPH_NETWORKS)
def test_a_graph_has_the_same_bits_alone_in_a_batch_on_any_plan_and_every_time(
    compiled: Compiled, network: str, precision: Precision
) -> None:
    graph = GRAPH_NETWORKS[network](4)
    batches = [case.batch(8, seed) for seed, case in enumerate([*GRAPHS[:7], GRAPHS[0], GRAPHS[-1]])]
    small, large = (compiled(graph, precision, initial_cost=n) for n in (1, 100_000))
    ones = [one for batch in batches for one in split(batch, [1] * batch["nodes"].items)]

    alone = [small.submit(one).result().values for one in ones]
    again = [large.submit(one).result().values for one in ones]
    together = split(large.submit(collate(ones)).result().values, [1] * len(ones))

    for first, second, part in zip(alone, again, together, strict=True):
        assert_same_bits(second, first)
        assert_same_bits(part, first)


@gpu
def test_more_edges_than_room_wait_for_a_larger_plan(compiled: Compiled) -> None:
    case = GraphCase("many edges", (900, 300), (30_000, 9_000))
    graph, batch = GRAPH_NETWORKS["residual"](4), case.batch(8)
    program = compiled(graph, Precision.FP32)

    found = program.submit(batch).result().values

    assert_agree(graph, found, expected_of(graph, batch), tolerance(terms=1000, layers=len(graph.nodes)))
    assert program.builds == {"load": 1, "growth": 1}
    assert program.capacity >= 39_000


@gpu
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("rows", [0, 1, 5, 64])
@pytest.mark.parametrize("network", DENSE_NETWORKS)
def test_rows_give_what_the_cpu_gives(compiled: Compiled, network: str, rows: int, precision: Precision) -> None:
    graph = NETWORKS[network]()
    batch = inputs(graph, rows)
    program = compiled(graph, precision)

    found = program.submit(batch).result().values

    assert_agree(graph, found, expected_of(graph, batch), tolerance(precision, 1000, layers=len(graph.nodes)))


@gpu
@pytest.mark.parametrize("network", CLOUD_NETWORKS)
def test_no_clouds_give_what_the_cpu_gives(compiled: Compiled, network: str) -> None:
    graph = NETWORKS[network]()
    batch = inputs(graph, CloudCase("none", ()))

    found = compiled(graph, Precision.FP32).submit(batch).result().values

    assert_agree(graph, found, expected_of(graph, batch), tolerance())


@gpu
@pytest.mark.parametrize("seed", range(20))
def test_random_networks_give_what_the_cpu_gives(compiled: Compiled, seed: int) -> None:
    graph = random_network(seed)
    batch = inputs(graph, CLOUDS[1], seed)
    program = compiled(graph, Precision.FP32)

    found = program.submit(batch).result().values

    assert_agree(graph, found, expected_of(graph, batch), tolerance(terms=1000, layers=len(graph.nodes)))


@gpu
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("network", ["minkunet", "centerpoint", "spvcnn"])
def test_a_cloud_has_the_same_bits_alone_in_a_batch_on_any_plan_and_every_time(
    compiled: Compiled, network: str, precision: Precision
) -> None:
    graph = NETWORKS[network]()
    batches = [inputs(graph, case, seed) for seed, case in enumerate(CLOUDS[:5])]
    small, large = (compiled(graph, precision, initial_cost=n) for n in (1, 100_000))

    alone = [small.submit(batch).result().values for batch in batches]
    again = [large.submit(batch).result().values for batch in batches]
    together = large.submit(collate(batches)).result().values

    parts = split(together, [next(iter(batch.values())).items for batch in batches])
    for first, second, part in zip(alone, again, parts, strict=True):
        assert_same_bits(second, first)
        assert_same_bits(part, first)


@gpu
@pytest.mark.parametrize("precision", list(Precision))
def test_a_row_has_the_same_bits_alone_in_a_batch_and_on_any_plan(compiled: Compiled, precision: Precision) -> None:
    graph = NETWORKS["mlp"]()
    batch = inputs(graph, 200)
    program = compiled(graph, precision)

    alone = [program.submit(part).result().values for part in split(batch, [1] * 200)]
    together = split(program.submit(batch).result().values, [1] * 200)

    for first, second in zip(alone, together, strict=True):
        assert_same_bits(second, first)


@gpu
def test_batches_in_flight_do_not_touch_each_other(compiled: Compiled) -> None:
    graph = NETWORKS["minkunet"]()
    batches = [inputs(graph, CLOUDS[i % 7], i) for i in range(9)]
    program = compiled(graph, Precision.FP16)
    one_by_one = [program.submit(batch).result().values for batch in batches]

    pending = [program.submit(batch) for batch in batches]
    results = [item.result() for item in reversed(pending)][::-1]

    for found, expected in zip(results, one_by_one, strict=True):
        assert_same_bits(found.values, expected)
        assert found.busy_seconds > 0


@gpu
@pytest.mark.parametrize("network", ["minkunet", "centerpoint"])
def test_pinned_inputs_give_what_others_give(compiled: Compiled, network: str) -> None:
    graph = NETWORKS[network]()
    batch = inputs(graph, CloudCase("several pieces", (50_000, 30_000), spread_m=20))
    program = compiled(graph, Precision.FP16, initial_cost=80_000)

    found = program.submit(pinned(batch)).result().values

    assert_same_bits(found, program.submit(batch).result().values)
    assert all(value.data.is_pinned() for value in found.values())


@gpu
@pytest.mark.parametrize("network", ["minkunet", "centerpoint"])
def test_results_that_are_held_stay_as_they_are(compiled: Compiled, network: str) -> None:
    graph = NETWORKS[network]()
    batches = [inputs(graph, CLOUDS[i % 2], i) for i in range(5)]
    program = compiled(graph, Precision.FP16)

    held = [program.submit(batch).result().values for batch in batches]
    seen = [{name: replace(value, data=value.data.clone()) for name, value in each.items()} for each in held]
    for pending in [program.submit(batch) for batch in reversed(batches)]:
        pending.result()

    for found, expected in zip(held, seen, strict=True):
        assert_same_bits(found, expected)


@gpu
@pytest.mark.parametrize("network", ["minkunet", "centerpoint"])
def test_batches_that_nobody_waits_for_harm_no_others(compiled: Compiled, network: str) -> None:
    graph = NETWORKS[network]()
    batches = [inputs(graph, CLOUDS[i % 7], i) for i in range(5)]
    program = compiled(graph, Precision.FP16)
    expected = program.submit(batches[0]).result().values

    for batch in batches:
        program.submit(pinned(batch))
    found = program.submit(batches[0]).result().values

    assert_same_bits(found, expected)


@gpu
def test_any_thread_may_submit_and_wait(compiled: Compiled) -> None:
    graph = NETWORKS["centerpoint"]()
    batch = inputs(graph, CLOUDS[1])
    program = compiled(graph, Precision.FP16)
    expected = program.submit(batch).result().values

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        found = other.submit(one.submit(program.submit, batch).result().result).result().values

    assert_same_bits(found, expected)


@gpu
def test_a_batch_that_does_not_fit_waits_for_a_larger_plan_while_others_go_on(compiled: Compiled) -> None:
    graph = NETWORKS["minkunet"]()
    program = compiled(graph, Precision.FP32)
    small, large = inputs(graph, CLOUDS[0]), inputs(graph, CloudCase("large", (20_000, 20_000), spread_m=20))
    expected = program.submit(small).result().values

    waiting = program.submit(large)
    meanwhile = [program.submit(small).result().values for _ in range(5)]
    found = waiting.result().values

    for values in [*meanwhile, program.submit(small).result().values]:
        assert_same_bits(values, expected)
    assert_agree(graph, found, expected_of(graph, large), tolerance(terms=1000, layers=len(graph.nodes)))
    assert program.builds == {"load": 1, "growth": 1}
    assert program.capacity >= 40_000


@gpu
def test_more_sites_than_room_run_again_and_are_never_wrong(compiled: Compiled) -> None:
    strided = {"mode": "strided", "kernel_size": [3, 3, 3], "stride": [2, 2, 2], "padding": [1, 1, 1]}
    nodes = [
        node("grid", "voxelize", "points", voxel_size_m=[0.1, 0.1, 0.1]),
        node("down1", "sparse_conv", "grid", out_channels=4, **strided),
        node("down2", "sparse_conv", "down1", out_channels=4, **strided),
    ]
    graph = parse_graph(document(cloud("intensity"), nodes, "down2"))
    batch = inputs(graph, CloudCase("lonely points", (12_000,), spread_m=100))
    program = compiled(graph, Precision.FP32)

    found = [program.submit(batch).result().values for _ in range(2)]

    expected = expected_of(graph, batch)
    assert len(expected["down2"].data) > 2 * 16_384
    for values in found:
        assert_agree(graph, values, expected, tolerance(terms=1000, layers=3))
    assert program.builds["growth"] >= 1


@gpu
def test_no_memory_for_a_batch_is_said_and_smaller_ones_go_on(compiled: Compiled) -> None:
    nodes = [node("wide", "linear", "x", out_features=1 << 20), node("y", "linear", "wide", out_features=1)]
    graph = parse_graph(document({"x": {"axis": "row", "shape": [1]}}, nodes, "y"))
    program = compiled(graph, Precision.FP32)

    waiting = program.submit(inputs(graph, 1 << 18))
    with pytest.raises(DeviceOutOfMemory):
        waiting.result()

    batch = inputs(graph, 3)
    assert_agree(graph, program.submit(batch).result().values, expected_of(graph, batch), tolerance(terms=1 << 20))


@gpu
def test_a_batch_over_the_limit_is_refused(compiled: Compiled) -> None:
    graph = NETWORKS["mlp"]()
    program = compiled(graph, Precision.FP32, max_cost=8)

    with pytest.raises(CapacityExceeded, match="9 is over the limit of 8"):
        program.submit(inputs(graph, 9))
    assert program.submit(inputs(graph, 8)).result().busy_seconds > 0


@gpu
def test_a_closed_program_gives_its_memory_back(compiled: Compiled) -> None:
    graph = NETWORKS["minkunet"]()
    compiled(graph, Precision.FP32).close()
    before = torch.cuda.memory_allocated()
    program = compiled(graph, Precision.FP32)
    held = torch.cuda.memory_allocated() - before
    program.submit(inputs(graph, CLOUDS[0])).result()

    assert 0.5 * held < program.memory_bytes < 1.5 * held
    program.close()
    assert torch.cuda.memory_allocated() == before


def test_a_valid_op_without_a_kernel_is_refused_by_name() -> None:
    class Sorted(Node):
        """A valid op on points that nobody has written a kernel for."""

    graph = NETWORKS["minkunet"]()
    stranger = Sorted(name="head", op="sorted", inputs=graph.by_name["head"].inputs)

    with pytest.raises(Unsupported, match=r"node 'head' \(sorted\)"):
        lowering(graph, stranger)


def test_random_networks_use_every_kind_of_step() -> None:
    ops = {(entry.op, getattr(entry, "mode", None)) for seed in range(20) for entry in random_network(seed).nodes}

    assert {("sparse_conv", mode) for mode in ("submanifold", "strided", "inverse")} <= ops
    assert {("add", None), ("concat", None), ("linear", None), ("batch_norm", None)} <= ops


def test_types_of_small_networks_are_what_the_tests_above_need() -> None:
    assert small_minkunet().output_types["labels"].dtype is DType.INT32
