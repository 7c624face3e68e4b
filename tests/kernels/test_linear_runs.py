"""Linear layers that follow each other are one launch for few rows, and nothing shows of it."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from lacuna_kernels import Backend, Options, Precision, Value, parse_graph, random_weights
from lacuna_kernels.cuda.blueprint import draw
from lacuna_kernels.cuda.capacity import Capacity
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.fusion import fuse
from lacuna_kernels.cuda.kronecker.few_rows import CHAIN_WAYS
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.table import Entry, Table
from lacuna_kernels.cuda.linear_runs import spans
from lacuna_kernels.cuda.measurement import Measurement, Objective
from lacuna_kernels.cuda.steps import Weights
from lacuna_kernels.cuda.tuned import Tuned
from lacuna_kernels.graph import Graph
from lacuna_kernels.ops.kronecker_linear import KSPattern
from tests.kernels.factors import H200
from tests.kernels.networks import document, node

MONARCH = [[16, 16, 16, 1], [1, 16, 16, 16]]


def network(*outputs: str) -> Graph:
    """Three layers with bias; what is between them is asked for if it is an output."""
    nodes = [
        node("a", "kronecker_linear", "x", patterns=MONARCH, activation="relu"),
        node("b", "kronecker_linear", "a", patterns=MONARCH, activation="gelu"),
        node("y", "kronecker_linear", "b", patterns=MONARCH),
    ]
    return parse_graph(document({"x": {"axis": "row", "shape": [256]}}, nodes, *outputs))


def steps(graph: Graph, rows: int, precision: Precision, table: Table | None = None) -> list[str]:
    """Names of the steps of a plan on paper."""
    layers = fuse(graph, random_weights(graph, 0), precision)
    device = SimpleNamespace(limits=H200)
    plan = draw(
        cast(Device, device), graph, layers, Weights(torch.device("cpu")), Capacity(0, rows), Tuned(table or Table())
    )
    return [step.name for step in plan.steps if step.name in ("a", "b", "y")]


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_layers_are_one_step_for_few_rows(rows: int) -> None:
    assert steps(network("y"), rows, Precision.BF16) == ["y"]


def test_a_network_that_is_one_run_is_one_launch_from_fp32_to_fp32() -> None:
    graph = network("y")
    layers = fuse(graph, random_weights(graph, 0), Precision.BF16)
    plan = draw(cast(Device, SimpleNamespace(limits=H200)), graph, layers, Weights(torch.device("cpu")), Capacity(0, 8))

    assert [step.name for step in plan.steps] == ["y"]
    assert plan.outputs["y"].dtype is plan.inputs["x"].dtype is torch.float32


def test_layers_are_steps_of_their_own_for_many_rows_and_in_fp32() -> None:
    assert steps(network("y"), 10_000, Precision.BF16) == ["a", "b", "y"]
    assert steps(network("y"), 8, Precision.FP32) == ["a", "b", "y"]


def measured(rows: int, seconds: dict[int, float]) -> Table:
    """A table of bf16 in which so many neighbouring layers of `network` take so long in one launch."""
    layer = [Problem(KSPattern(*values), rows, Precision.BF16) for values in MONARCH]
    times = {layers: {way.name: Measurement(seconds=time) for way in CHAIN_WAYS} for layers, time in seconds.items()}
    return Table().with_entries([Entry.of(layer * layers, Objective.LATENCY, ways) for layers, ways in times.items()])


def test_a_run_that_was_measured_slower_than_its_layers_is_none() -> None:
    assert steps(network("y"), 8, Precision.BF16) == ["y"]
    assert steps(network("y"), 8, Precision.BF16, measured(8, {3: 1.0, 2: 1.0})) == ["a", "b", "y"]


def test_a_run_that_was_measured_faster_than_its_layers_is_one() -> None:
    assert steps(network("y"), 400, Precision.BF16) == ["a", "b", "y"]
    assert steps(network("y"), 400, Precision.BF16, measured(400, {3: 1e-9})) == ["y"]


def test_of_several_runs_those_are_taken_that_cost_least_together() -> None:
    assert steps(network("y"), 8, Precision.BF16, measured(8, {3: 1.0, 2: 1e-9})) in (["b", "y"], ["a", "y"])
    assert steps(network("y"), 8, Precision.BF16, measured(8, {3: 1e-9, 2: 2e-9})) == ["y"]


def test_runs_to_be_measured_are_of_neighbours_that_a_kernel_may_take() -> None:
    def lengths(graph: Graph, rows: int, precision: Precision) -> list[int]:
        layers = fuse(graph, random_weights(graph, 0), precision)
        return [len(problems) for problems in spans(graph, layers, Capacity(0, rows), H200)]

    assert lengths(network("y"), 8, Precision.BF16) == [4, 6, 4]
    assert lengths(network("a", "y"), 8, Precision.BF16) == [4]
    assert lengths(network("y"), 10_000, Precision.BF16) == []
    assert lengths(network("y"), 8, Precision.FP32) == []


def test_what_somebody_else_asks_for_ends_a_run() -> None:
    assert steps(network("a", "y"), 8, Precision.BF16) == ["a", "y"]
    assert steps(network("b", "y"), 8, Precision.BF16) == ["b", "y"]


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_a_run_gives_the_bits_of_layer_after_layer(cuda_backend: Backend, precision: Precision, rows: int) -> None:
    together, apart = network("y"), network("a", "b", "y")
    weights = random_weights(together, 1)
    found = []
    for graph in (together, apart):
        program = cuda_backend.compile(graph, weights, Options(precision))
        batch = {"x": Value(torch.randn(rows, 256, generator=torch.Generator().manual_seed(3)))}
        found.append(program.submit(batch).result().values["y"].data)
        program.close()

    assert not bool(found[0].isnan().any())
    assert torch.equal(*found)
