"""What the benchmark of relational graph convolutions runs on, and that it judges rightly; on the CPU."""

import pytest
import torch
from torch import Tensor

from bench.bench_rgcn import SIZES, Case, Size, layer, ours, random_graph
from lacuna_kernels import Precision, check_request, open_backend, random_weights

SMALL = Size(300, 1200, 6)


def small_case() -> Case:
    graph = layer(SMALL, 8)
    return Case(graph, random_weights(graph, 0), random_graph(SMALL, 8), "cpu")


def test_graphs_are_as_large_as_they_say_and_valid():
    case = small_case()

    assert check_request(case.graph, case.batch) == 1
    assert (len(case.batch["nodes"].data), len(case.batch["edges"].data)) == (300, 1200)
    counts = torch.bincount(case.batch["edges"].data[:, 2], minlength=6).tolist()
    assert counts == sorted(counts, reverse=True)
    assert str(SIZES["aifb"]) == "8,285 nodes, 58,086 edges, 90 relations"


def test_a_wrong_row_is_seen():
    case = small_case()
    expected = case.reference(torch.float64)()
    found = case.reference(torch.float32)()

    assert case.error(found, expected) < 1e-6
    found[17, 3] += 1
    assert case.error(found, expected) > 0.1


def test_ours_is_timed_and_compared():
    case = small_case()

    timed = ours(case, open_backend("cpu"), Precision.FP32, 3, case.reference(torch.float64)())

    assert timed.ms > 0
    assert timed.error < 1e-6
    assert str(timed).startswith("  ours fp32")


def test_weights_of_another_layer_are_ours():
    class Theirs(torch.nn.Module):
        """As RGCNConv names its parameters."""

        def __init__(self, ci: int, co: int, relations: int) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(relations, ci, co))
            self.root = torch.nn.Parameter(torch.empty(ci, co))
            self.bias = torch.nn.Parameter(torch.empty(co))

        def forward(self, x: Tensor, ends: Tensor, relation: Tensor) -> Tensor:
            y = x @ self.root + self.bias
            for r, weight in enumerate(self.weight):
                source, target = ends[:, relation == r]
                counts = torch.bincount(target, minlength=len(x)).clamp(min=1)[:, None]
                y = y + torch.zeros_like(x).index_add(0, target, x[source]) / counts @ weight
            return y

    case = small_case()
    expected = case.reference(torch.float64)()

    assert case.error(case.geometric(Theirs, torch.float64)().detach(), expected) == pytest.approx(0, abs=1e-12)
