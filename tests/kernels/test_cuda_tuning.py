"""Tuning on a GPU: every way that competes is measured, kept by the GPU's name, and gone by."""

from pathlib import Path

import pytest
import torch

from lacuna_kernels import Options, Precision, gpu_count, random_weights
from lacuna_kernels.cuda.backend import CudaBackend
from lacuna_kernels.cuda.kronecker.table import Objective, read_table
from lacuna_kernels.zoo import kronecker_mlp

pytestmark = pytest.mark.gpu

GRAPH = kronecker_mlp([[(4, 16, 16, 1), (1, 4, 4, 16)]], 10)


@pytest.mark.parametrize("objective", Objective)
def test_a_network_is_tuned_and_the_table_kept(tmp_path: Path, objective: Objective):
    if not gpu_count():
        pytest.skip("no CUDA device, or no pycuda")
    backend, seen, joules = CudaBackend(0, cache=tmp_path), list[tuple[int, int]](), iter(range(10**6))
    try:
        path = backend.tune(
            GRAPH,
            random_weights(GRAPH, 0),
            Options(Precision.FP16),
            [1, 100],
            objective,
            lambda: float(next(joules)),
            lambda done, total, what: seen.append((done, total)),
        )
        entries = read_table(tmp_path, backend.device.name).entries
        program = backend.compile(GRAPH, random_weights(GRAPH, 0), Options(Precision.FP16))
        program.close()
    finally:
        backend.close()

    assert path.parent == tmp_path / "tuned"
    assert seen[-1][0] == seen[-1][1] == len(entries) >= 6  # two factors and a head, for two sizes
    for entry in entries.values():
        assert entry.objective is objective
        assert entry.ways
        assert all(way.seconds > 0 for way in entry.ways.values())
        assert all((way.joules is not None) is (objective is Objective.ENERGY) for way in entry.ways.values())
    assert torch.cuda.is_available()
