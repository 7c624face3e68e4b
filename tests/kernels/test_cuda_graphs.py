"""Kernels for edges on a GPU: whole numbers exactly, sums against float64, layers against PyTorch Geometric."""

from typing import Any

import pytest
import torch

from lacuna_kernels import Graph, Options, Precision, parse_graph
from lacuna_kernels.cuda.edges import PairBuffer, edge_sums
from tests.cases import GRAPHS, GraphCase, assert_close, tolerance
from tests.kernels.device_graphs import assert_pairs, expected_pairs, paired
from tests.kernels.device_sites import DTYPES, SPARE, counted, ints, poisoned
from tests.kernels.networks import document, graphs, node

pytestmark = pytest.mark.gpu

LARGE = [
    GraphCase("many tiles of a sort", (60_000, 1, 40_000), (300_000, 2, 100_000), relations=90),
    GraphCase("a thousand relations", (3000,), (50_000,), relations=1000),
    GraphCase("hubs", (20_000,), (200_000,), relations=5, targets=7),
    GraphCase("many graphs", tuple(range(300)), (0, *range(299)), relations=3),
]


@pytest.mark.parametrize("case", [*GRAPHS, *LARGE], ids=str)
def test_edges_are_paired_by_target_and_relation_and_keep_their_order(device, case):
    batch = case.batch(1)

    pairs, kernel_map = paired(device, batch, case.relations, ints)

    assert_pairs(pairs, kernel_map, batch)


@pytest.mark.parametrize("channels, width", [(16, 16), (64, 64), (24, 40), (5, 5), (1, 3), (300, 300)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mean", [True, False], ids=["mean", "sum"])
def test_features_are_added_over_the_edges_of_a_pair(device, channels, width, dtype, mean):
    for case in (GRAPHS[1], GRAPHS[-1], GRAPHS[3], LARGE[2]):
        batch = case.batch(channels)
        _, sources, starts = expected_pairs(batch)
        count = len(starts) - 1
        pairs = PairBuffer(sources.int().cuda(), starts.int().cuda(), counted(count))
        x, y = poisoned(len(batch["nodes"].data), width, dtype=dtype), poisoned(count + SPARE, channels, dtype=dtype)
        x[:, :channels] = batch["nodes"].data.to(dtype)

        edge_sums(device, x[:, :channels], pairs, y, mean=mean)

        of_pair = torch.repeat_interleave(starts.diff())
        sums = torch.zeros(count, channels, dtype=torch.float64)
        sums = sums.index_add(0, of_pair, x[:, :channels].cpu()[sources].double())
        expected = sums / starts.diff()[:, None] if mean else sums
        assert_close(y[:count], expected, tolerance(dtype, 50_000))
        assert bool(y[count:].isnan().all())


def layer(relations: int, channels: int, out_channels: int, **attributes: Any) -> Graph:
    conv = node("y", "relational_graph_conv", "nodes", "edges", out_channels=out_channels, **attributes)
    return parse_graph(document(graphs(relations, channels), [conv], "y"))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("aggregate", ["mean", "sum"])
@pytest.mark.parametrize("case", [GRAPHS[0], LARGE[0], LARGE[2]], ids=str)
def test_a_layer_is_that_of_pytorch_geometric(cuda_backend, case, aggregate, precision):
    geometric = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(0)
    theirs = geometric.RGCNConv(16, 24, case.relations, aggr="add" if aggregate == "sum" else "mean")
    torch.nn.init.normal_(theirs.bias)
    weights = {"y.weight": theirs.weight, "y.root": theirs.root, "y.bias": theirs.bias}
    one = GraphCase(case.name, case.nodes[:1], case.edges[:1], case.relations, case.targets).batch(16)
    source, target, relation = one["edges"].data.long().unbind(1)
    with torch.no_grad():
        expected = theirs.double()(one["nodes"].data.double(), torch.stack([source, target]), relation)
    graph = layer(case.relations, 16, 24, aggregate=aggregate)
    held = {name: weight.detach().float() for name, weight in weights.items()}
    program = cuda_backend.compile(graph, held, Options(precision))

    found = program.submit(one).result().values["y"].data

    program.close()
    # a hub's sum over a relation is rounded once, as one number: its errors do not average out over neighbours
    assert_close(found, expected, tolerance(precision, 50_000, layers=12))
