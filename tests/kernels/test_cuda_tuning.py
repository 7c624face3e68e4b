"""Tuning: all that competes is measured on a GPU and kept by its name, and what a table holds is gone by."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from lacuna_kernels import Options, Precision, Tuning, gpu_count, random_weights
from lacuna_kernels.cuda.backend import CudaBackend
from lacuna_kernels.cuda.blueprint import draw
from lacuna_kernels.cuda.capacity import Capacity
from lacuna_kernels.cuda.dense_steps import problems_of
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.fusion import fuse
from lacuna_kernels.cuda.kronecker.choose import candidates
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.table import Entry, Table
from lacuna_kernels.cuda.linear_runs import spans
from lacuna_kernels.cuda.measurement import Measurement, Objective
from lacuna_kernels.cuda.steps import Weights
from lacuna_kernels.cuda.tuned import Tuned, add_to_table, read_table, table_path
from lacuna_kernels.cuda.tuning import LIKELY, MOST_WAYS, contenders, tasks
from lacuna_kernels.ops.kronecker_linear import KSPattern
from lacuna_kernels.zoo import kronecker_mlp
from tests.kernels.factors import H200

GRAPH = kronecker_mlp([[(4, 16, 16, 1), (1, 16, 16, 4)], [(4, 16, 16, 1), (1, 16, 16, 4)]], 10)
LAYERS = fuse(GRAPH, random_weights(GRAPH, 0), Precision.FP16)
HIDDEN = [layer for layer in LAYERS if layer.output.startswith("hidden")]
ROOM = Capacity(1, 1)


def drawn(limits: DeviceLimits, table: Table) -> set[object]:
    """What a plan on paper keeps on the device: weights by layers and by how the ways that were chosen pack them."""
    device, weights = cast(Device, SimpleNamespace(limits=limits)), Weights(torch.device("cpu"))
    draw(device, GRAPH, LAYERS, weights, ROOM, Tuned(table))
    return set(weights.held)


def unlikely(limits: DeviceLimits) -> Table:
    """A table in which of each factor's ways that one was fastest which is predicted to be slowest."""
    problems = {p for layer in HIDDEN for p in problems_of(layer, GRAPH.types[layer.output], ROOM)}
    slowest = {problem: candidates(problem, limits)[-1].name for problem in problems}
    fast = Measurement(seconds=1e-9)
    return Table().with_entries([Entry.of([p], Objective.LATENCY, {name: fast}) for p, name in slowest.items()])


def test_a_plan_goes_by_the_table() -> None:
    factors = [
        (layer.output, candidates(problem, H200)[-1].packing, place, 1, torch.float16)
        for layer in HIDDEN
        for place, problem in enumerate(problems_of(layer, GRAPH.types[layer.output], ROOM))
    ]

    assert not drawn(H200, Table()) & {*factors}
    assert drawn(H200, unlikely(H200)) >= {*factors}


def test_factors_their_neighbours_in_a_layer_and_runs_of_layers_are_measured_once_each() -> None:
    chains = [problems_of(layer, GRAPH.types[layer.output], ROOM) for layer in HIDDEN]
    runs = list(spans(GRAPH, LAYERS, ROOM, H200))

    found = list(tasks(chains, runs, H200))

    assert sorted(len(problems) for problems in runs) == [3, 4, 5]  # hidden2 and head, both hidden ones, all
    assert sorted(len(stages[0].problems) for stages in found) == [1, 1, 2, 3, 4, 5]
    assert all(0 < len(stages) <= MOST_WAYS for stages in found)
    assert all(len({stage.problems for stage in stages}) == 1 for stages in found)


def test_ways_that_are_predicted_to_be_far_behind_are_not_measured() -> None:
    problem = Problem(KSPattern(16, 128, 512, 16), 25_088, Precision.FP16)
    ways = candidates(problem, H200)[:MOST_WAYS]

    measured = contenders(problem, H200)

    most = LIKELY * ways[0].seconds(problem, H200)
    assert measured[0] is ways[0]
    assert 0 < len(measured) < len(ways)
    assert [way in measured for way in ways] == [way.seconds(problem, H200) <= most for way in ways]


@pytest.mark.gpu
@pytest.mark.parametrize("objective", Objective)
def test_a_network_is_tuned_and_the_table_kept_and_gone_by(tmp_path: Path, objective: Objective) -> None:
    if not gpu_count():
        pytest.skip("no CUDA device, or no pycuda")
    backend, seen, joules = CudaBackend(0, cache=tmp_path), list[tuple[int, int]](), iter(range(10**6))
    damaged, notices = table_path(tmp_path, backend.device.name), list[str]()
    damaged.parent.mkdir()
    damaged.write_text("{}")
    try:
        tuning = backend.tune(
            GRAPH,
            random_weights(GRAPH, 0),
            Options(Precision.FP16),
            [1, 100],
            [],
            objective,
            lambda: float(next(joules)),
            lambda done, total, what: seen.append((done, total)),
            notices.append,
        )
        table = read_table(tmp_path, backend.device.name).factors
        program = backend.compile(GRAPH, random_weights(GRAPH, 0), Options(Precision.FP16))
        held, expected = set(program._weights.held), drawn(backend._device.limits, table)
    finally:
        backend.close()

    assert tuning == Tuning(tmp_path / "tuned" / damaged.name, [])
    assert len(notices) == 1
    assert seen[-1][0] == seen[-1][1] == len(table.entries) >= 6  # two factors and a head, for two sizes
    assert held == expected
    for entry in table.entries.values():
        assert entry.objective is objective
        assert entry.ways
        assert all(way.seconds > 0 for way in entry.ways.values())
        assert all((way.joules is not None) is (objective is Objective.ENERGY) for way in entry.ways.values())


@pytest.mark.gpu
def test_a_table_that_lies_there_is_gone_by(tmp_path: Path) -> None:
    if not gpu_count():
        pytest.skip("no CUDA device, or no pycuda")
    backend = CudaBackend(0, cache=tmp_path)
    limits, name = backend._device.limits, backend.device.name
    backend.close()
    add_to_table(tmp_path, name, list(unlikely(limits).entries.values()))
    backend = CudaBackend(0, cache=tmp_path)
    try:
        program = backend.compile(GRAPH, random_weights(GRAPH, 0), Options(Precision.FP16))
        assert set(program._weights.held) == drawn(limits, unlikely(limits))
    finally:
        backend.close()
