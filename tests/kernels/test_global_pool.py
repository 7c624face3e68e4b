"""One row per cloud."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna_kernels import Axis, GraphError, Value, parse_graph, walk
from tests.cases import CLOUDS, assert_close, tolerance
from tests.kernels.networks import cloud, document, node


def pool(points: Value, mode: str) -> Value:
    graph = parse_graph(document(cloud("f"), [node("y", "global_pool", "points", mode=mode)], "y"))
    assert graph.types["y"].axis is Axis.CLOUD
    return walk(graph, {}, {"points": points})["y"]


@pytest.mark.parametrize("case", CLOUDS, ids=str)
def test_every_cloud_is_reduced_alone_and_an_empty_one_gives_zeros(case):
    points = case.value()
    parts = [points.data[a:b] for a, b in points.offsets.unfold(0, 2, 1).tolist()]
    means = [part.double().mean(0).float() if len(part) else torch.zeros(4) for part in parts]
    largest = [part.amax(0) if len(part) else torch.zeros(4) for part in parts]

    mean, maximum = pool(points, "mean"), pool(points, "max")

    assert mean.offsets is None
    assert torch.equal(maximum.data, torch.stack(largest))
    assert_close(mean.data, torch.stack(means), tolerance(terms=max(map(len, parts))))


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(0, 2**31))
def test_any_lengths(lengths, seed):
    data = torch.randint(-9, 9, (sum(lengths), 4), generator=torch.Generator().manual_seed(seed)).float() - 20
    offsets = torch.tensor([0, *lengths]).cumsum(0)

    y = pool(Value(data, offsets), "max").data

    expected = [part.amax(0) if len(part) else torch.zeros(4) for part in data.split(lengths)]
    assert torch.equal(y, torch.stack(expected))


def test_sites_are_pooled_by_cloud():
    nodes = [
        node("grid", "voxelize", "points", voxel_size_m=[0.5, 0.5, 0.5]),
        node("y", "global_pool", "grid", mode="max"),
    ]
    points = CLOUDS[1].value()

    values = walk(parse_graph(document(cloud("f"), nodes, "grid", "y")), {}, {"points": points})

    parts = values["grid"].data.split(values["grid"].offsets.diff().tolist())
    assert torch.equal(values["y"].data, torch.stack([part.amax(0) for part in parts]))


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_gradients_are_right(mode):
    offsets = torch.tensor([0, 3, 3, 5])
    graph = parse_graph(document(cloud("f"), [node("y", "global_pool", "points", mode=mode)], "y"))
    data = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def pooled(data: torch.Tensor) -> torch.Tensor:
        return graph.nodes[0].reference([Value(data, offsets)], {}, None).data

    assert torch.autograd.gradcheck(pooled, (data,))


def test_dense_rows_are_refused():
    with pytest.raises(GraphError, match=r"'y'.*needs points or sites"):
        parse_graph(document({"x": {"axis": "row", "shape": [4]}}, [node("y", "global_pool", "x")], "y"))
