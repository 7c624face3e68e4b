"""The CUDA backend gives what the CPU gives: any network, any batch, alone or together, whatever plan it runs on."""

import pytest
import torch

from lacuna_kernels import DType, Precision, Unsupported, collate, split
from lacuna_kernels.cuda.lowering import lowering
from lacuna_kernels.graph import Node
from tests.cases import CLOUDS, GRAPHS, CloudCase, GraphCase, tolerance
from tests.kernels.random_networks import random_network
from tests.kernels.small_networks import (
    CLOUD_NETWORKS,
    DENSE_NETWORKS,
    GRAPH_NETWORKS,
    NETWORKS,
    Compiled,
    assert_agree,
    assert_same_bits,
    expected_of,
    inputs,
    small_minkunet,
)

gpu = pytest.mark.gpu
FITTING = [
    pytest.param(case, precision, id=f"{case}-{precision}")
    for case in CLOUDS
    for precision in Precision
    if precision is not Precision.FP16 or max(map(abs, case.centre_m)) < torch.finfo(torch.float16).max
]
"""Clouds that a precision can hold: a coordinate is a feature too."""


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
