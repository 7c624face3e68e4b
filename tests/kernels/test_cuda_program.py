"""How a network that is compiled for a GPU takes batches: several at a time, of any size, and within its memory."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from bench.gpu import pinned
from lacuna_kernels import (
    Backend,
    CapacityExceeded,
    DeviceOutOfMemory,
    Model,
    Options,
    Precision,
    memory_use,
    parse_graph,
    random_weights,
)
from tests.cases import CLOUDS, CloudCase, GraphCase, tolerance
from tests.kernels.networks import cloud, document, node
from tests.kernels.small_networks import (
    GRAPH_NETWORKS,
    NETWORKS,
    Compiled,
    assert_agree,
    assert_same_bits,
    expected_of,
    inputs,
)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["minkunet", "head", "mlp", "vit"])
def test_memory_is_what_was_worked_out_on_paper(cuda_backend: Backend, name: str) -> None:
    graph = NETWORKS[name]()
    model, options = Model(graph, random_weights(graph, 0)), Options(Precision.FP16, max_cost=4096, initial_cost=4096)
    ragged = any(kind.axis.ragged for kind in graph.input_value_types.values())

    program = cuda_backend.compile(graph, model.weights, options)

    use = memory_use(model, options, [4096 if ragged else 1])
    assert program.memory_bytes == use.weights + use.plans[0][1]
    program.close()


def test_more_edges_than_room_wait_for_a_larger_plan(compiled: Compiled) -> None:
    case = GraphCase("many edges", (900, 300), (30_000, 9_000))
    graph, batch = GRAPH_NETWORKS["residual"](4), case.batch(8)
    program = compiled(graph, Precision.FP32)

    found = program.submit(batch).result().values

    assert_agree(graph, found, expected_of(graph, batch), tolerance(terms=1000, layers=len(graph.nodes)))
    assert program.builds == {"load": 1, "growth": 1}
    assert program.capacity >= 39_000


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


@pytest.mark.parametrize("network", ["minkunet", "centerpoint"])
def test_pinned_inputs_give_what_others_give(compiled: Compiled, network: str) -> None:
    graph = NETWORKS[network]()
    batch = inputs(graph, CloudCase("several pieces", (50_000, 30_000), spread_m=20))
    program = compiled(graph, Precision.FP16, initial_cost=80_000)

    found = program.submit(pinned(batch)).result().values

    assert_same_bits(found, program.submit(batch).result().values)
    assert all(value.data.is_pinned() for value in found.values())


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


def test_any_thread_may_submit_and_wait(compiled: Compiled) -> None:
    graph = NETWORKS["centerpoint"]()
    batch = inputs(graph, CLOUDS[1])
    program = compiled(graph, Precision.FP16)
    expected = program.submit(batch).result().values

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        found = other.submit(one.submit(program.submit, batch).result().result).result().values

    assert_same_bits(found, expected)


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


def test_no_memory_for_a_batch_is_said_and_smaller_ones_go_on(compiled: Compiled) -> None:
    nodes = [node("wide", "linear", "x", out_features=1 << 20), node("y", "linear", "wide", out_features=1)]
    graph = parse_graph(document({"x": {"axis": "row", "shape": [1]}}, nodes, "y"))
    program = compiled(graph, Precision.FP32)

    waiting = program.submit(inputs(graph, 1 << 18))
    with pytest.raises(DeviceOutOfMemory):
        waiting.result()

    batch = inputs(graph, 3)
    assert_agree(graph, program.submit(batch).result().values, expected_of(graph, batch), tolerance(terms=1 << 20))


def test_a_batch_over_the_limit_is_refused(compiled: Compiled) -> None:
    graph = NETWORKS["mlp"]()
    program = compiled(graph, Precision.FP32, max_cost=8)

    with pytest.raises(CapacityExceeded, match="9 is over the limit of 8"):
        program.submit(inputs(graph, 9))
    assert program.submit(inputs(graph, 8)).result().busy_seconds > 0


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
