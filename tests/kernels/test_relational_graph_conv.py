"""Graphs of nodes and edges: what the convolution on them means, what is refused, and how they are batched."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lacuna_kernels import (
    Axis,
    CapacityExceeded,
    DType,
    GraphError,
    InputError,
    Options,
    Value,
    check_request,
    collate,
    cost,
    open_backend,
    parse_graph,
    random_weights,
    split,
    walk,
)
from lacuna_kernels.graph import Graph
from lacuna_kernels.zoo import rgcn
from tests.cases import GRAPHS, GraphCase, assert_close, tolerance
from tests.kernels.networks import document, graphs, node

CI, CO = 5, 7


def convolution(relations: int = 4, features: int = CI, **attributes: Any) -> Graph:
    conv = node("y", "relational_graph_conv", "nodes", "edges", **{"out_channels": CO, **attributes})
    return parse_graph(document(graphs(relations, features), [conv], "y"))


def batch(nodes: Tensor, edges: list[tuple[int, int, int]]) -> dict[str, Value]:
    """One graph."""
    data = torch.tensor(edges, dtype=torch.int32).view(-1, 3)
    return {"nodes": Value(nodes, torch.tensor([0, len(nodes)])), "edges": Value(data, torch.tensor([0, len(data)]))}


def dense(given: dict[str, Value], weights: dict[str, Tensor], aggregate: str) -> Tensor:
    """By a matrix of nodes by nodes for every relation, in float64."""
    x, edges = given["nodes"], given["edges"]
    weight = weights["y.weight"].double()
    adjacent = torch.zeros(len(weight), len(x.data), len(x.data), dtype=torch.float64)
    for item, (first, start, stop) in enumerate(zip(x.offsets, edges.offsets, edges.offsets[1:], strict=False)):
        for source, target, relation in edges.data[start:stop].tolist():
            assert max(source, target) + first < x.offsets[item + 1]
            adjacent[relation, target + first, source + first] += 1
    if aggregate == "mean":
        adjacent /= adjacent.sum(2, keepdim=True).clamp(min=1)
    y = torch.einsum("rij,jc,rcd->id", adjacent, x.data.double(), weight)
    if "y.root" in weights:
        y += x.data.double() @ weights["y.root"].double()
    return y + weights["y.bias"].double() if "y.bias" in weights else y


@pytest.mark.parametrize("aggregate", ["mean", "sum"])
@pytest.mark.parametrize("extras", [True, False], ids=["root and bias", "neither"])
@pytest.mark.parametrize("case", GRAPHS, ids=str)
def test_it_is_the_dense_formula(case: GraphCase, extras: bool, aggregate: str) -> None:
    graph = convolution(case.relations, aggregate=aggregate, root=extras, bias=extras)
    weights, given = random_weights(graph, 1), case.batch(CI)
    assert ("y.root" in weights) is ("y.bias" in weights) is extras

    y = walk(graph, weights, given)["y"]

    assert torch.equal(y.offsets, given["nodes"].offsets)
    assert_close(y.data, dense(given, weights, aggregate), tolerance(terms=1000))


def test_it_is_what_the_hand_works_out() -> None:
    weights = {
        "y.weight": torch.tensor([[[1.0]], [[10.0]]]),
        "y.root": torch.tensor([[100.0]]),
        "y.bias": torch.zeros(1),
    }
    x = torch.tensor([[1.0], [2.0], [5.0], [7.0]])
    edges = [(0, 1, 0), (2, 1, 0), (2, 1, 0), (3, 1, 1), (3, 3, 1)]  # one is there twice, one leads to itself
    sums = {}
    for aggregate in ("mean", "sum"):
        graph = convolution(2, features=1, out_channels=1, aggregate=aggregate)
        sums[aggregate] = walk(graph, weights, batch(x, edges))["y"].data[:, 0].tolist()

    assert sums["mean"] == pytest.approx([100, 200 + 11 / 3 + 70, 500, 700 + 70])
    assert sums["sum"] == pytest.approx([100, 200 + 11 + 70, 500, 700 + 70])


def test_the_order_of_edges_does_not_matter() -> None:
    graph, given = convolution(), GRAPHS[0].batch(CI)
    weights, edges = random_weights(graph, 0), given["edges"]
    turned = given | {"edges": Value(edges.data.flip(0), edges.offsets)}

    assert_close(walk(graph, weights, turned)["y"].data, walk(graph, weights, given)["y"].data, tolerance(terms=50))


def test_activation_comes_last() -> None:
    given = GRAPHS[0].batch(CI)
    plain, rectified = convolution(), convolution(activation="relu")
    weights = random_weights(plain, 0)

    y = walk(plain, weights, given)["y"].data

    assert torch.equal(walk(rectified, weights, given)["y"].data, y.relu())
    assert bool((y < 0).any())


def test_gradients_are_right() -> None:
    graph, given = convolution(aggregate="mean"), GraphCase("small", (4, 3), (9, 6)).batch(CI)
    own = {name.removeprefix("y."): weight.double() for name, weight in random_weights(graph, 0).items()}
    x, edges = given["nodes"], given["edges"]

    def result(data: Tensor, *tensors: Tensor) -> Tensor:
        weights = dict(zip(own, tensors, strict=True))
        return graph.nodes[0].reference([Value(data, x.offsets), edges], weights, None).data

    inputs = tuple(tensor.detach().requires_grad_() for tensor in (x.data.double(), *own.values()))
    assert torch.autograd.gradcheck(result, inputs)


ROWWISE = [
    node("a", "linear", "nodes", out_features=8, activation="relu"),
    node("b", "relational_graph_conv", "a", "edges", out_channels=8, aggregate="sum"),
    node("c", "batch_norm", "b"),
    node("d", "relu", "c"),
    node("e", "layer_norm", "d"),
    node("f", "add", "e", "a"),
    node("g", "concat", "f", "nodes"),
    node("h", "relational_graph_conv", "g", "edges", out_channels=3),
    node("label", "argmax", "h"),
    node("scores", "softmax", "h"),
    node("whole", "global_pool", "h", mode="max"),
]
EVERYTHING = parse_graph(document(graphs(4, CI), ROWWISE, "label", "scores", "whole"))
"""What works row by row on points works on nodes."""


def test_other_ops_take_nodes_as_points() -> None:
    types = EVERYTHING.types

    assert types["nodes"].axis is types["h"].axis is types["label"].axis is Axis.POINT
    assert types["whole"].axis is Axis.CLOUD
    assert str(types["edges"]) == "edge [edges, 3] int32"


@pytest.mark.parametrize("case", [case for case in GRAPHS if case.relations <= 4], ids=str)
def test_a_batch_of_many_equals_each_alone(case: GraphCase) -> None:
    weights, given = random_weights(EVERYTHING, 0), case.batch(CI)
    program = open_backend("cpu").compile(EVERYTHING, weights, Options())
    ones = split(given, [1] * given["nodes"].items)

    parts = split(program.submit(collate(ones)).result().values, [1] * len(ones))

    for one, part in zip(ones, parts, strict=True):
        alone = program.submit(one).result().values
        assert_close(part["scores"].data, alone["scores"].data, tolerance(terms=100, layers=10))
        assert_close(part["whole"].data, alone["whole"].data, tolerance(terms=100, layers=10))


def test_collate_and_split_undo_each_other() -> None:
    batches = [case.batch(CI) for case in GRAPHS]

    parts = split(collate(batches), [len(case.nodes) for case in GRAPHS])

    for part, one in zip(parts, batches, strict=True):
        for name, value in one.items():
            assert torch.equal(part[name].data, value.data)
            assert torch.equal(part[name].offsets, value.offsets)


def test_edges_count_where_there_are_more_of_them_than_nodes() -> None:
    program = open_backend("cpu").compile(convolution(), random_weights(convolution(), 0), Options(max_cost=899))

    assert cost(GRAPHS[0].batch(CI)) == 900
    assert cost(GRAPHS[4].batch(CI)) == 50
    with pytest.raises(CapacityExceeded, match="a batch of 900 is over the limit of 899"):
        program.submit(GRAPHS[0].batch(CI))


def test_the_builder_has_the_layers_and_weights_of_its_name() -> None:
    graph = rgcn(["a", "b", "c"], 8, 6, hidden=16, layers=3)

    assert [entry.op for entry in graph.nodes] == [*["relational_graph_conv"] * 3, "argmax", "softmax"]
    assert graph.weight_shapes()["hidden2.weight"] == (6, 16, 16)
    assert graph.weight_shapes()["logits.root"] == (16, 3)
    assert graph.outputs["label"].classes == ("a", "b", "c")
    result = walk(graph, random_weights(graph, 0), GraphCase("two", (9, 4), (30, 2), relations=6).batch(8))
    torch.testing.assert_close(result["probabilities"].data.sum(1), torch.ones(13))
    assert result["label"].data.dtype is DType.INT32.torch
    with pytest.raises(ValueError, match="at least one layer, got 0"):
        rgcn(3, 8, 6, layers=0)


def test_a_graph_is_written_and_read_with_its_edges() -> None:
    for options in ({}, {"exclude_defaults": True}):
        again = parse_graph(EVERYTHING.model_dump(mode="json", **options))
        assert again.types == EVERYTHING.types
        assert again.types["edges"].relations == 4


EDGES = {"axis": "edge", "nodes": "nodes", "relations": 4}
NODES = {"axis": "point", "shape": [CI]}
CLOUD = {"axis": "point", "columns": ["x", "y", "z"]}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"nodes": NODES | {"columns": ["x", "y", "z"]}}, "or a shape: [features], not both"),
        ({"nodes": NODES | {"shape": [2, 3]}}, "or a shape: [features], not both"),
        ({"nodes": {"axis": "point"}}, "needs columns, such as x, y, z, intensity, or a shape: [features]"),
        ({"nodes": NODES | {"dtype": "fp16"}}, "points are fp32, got fp16"),
        ({"nodes": NODES | {"relations": 2}}, "only an edge input has nodes and relations, this is a point input"),
        ({"edges": EDGES | {"dtype": "fp32"}}, "edges are int32, got fp32"),
        ({"edges": EDGES | {"shape": [3]}}, "needs nodes, the point input that it joins, and relations"),
        ({"edges": {"axis": "edge", "nodes": "nodes"}}, "needs nodes, the point input that it joins, and relations"),
        ({"edges": EDGES | {"relations": 0}}, "relations"),
        ({"edges": EDGES | {"nodes": "edges"}}, "input 'edges': joins 'edges', which is no point input"),
        ({"edges": EDGES | {"nodes": "more"}}, "joins 'more', which is no point input; those are ['nodes', 'other']"),
        ({"edges": EDGES | {"nodes": "other"}}, "the edges join 'other', the features are of 'nodes'"),
    ],
)
def test_inputs_that_make_no_graph_are_refused(inputs: dict[str, Any], words: str) -> None:
    conv = node("y", "relational_graph_conv", "nodes", "edges", out_channels=CO)
    given = {"nodes": NODES, "other": CLOUD, "edges": EDGES} | inputs
    with pytest.raises(GraphError) as caught:
        parse_graph(document(given, [conv], "y"))

    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (node("y", "voxelize", "nodes", voxel_size_m=[1, 1, 1]), "needs an input cloud with columns x, y, z, ..."),
        (node("y", "relational_graph_conv", "edges", "nodes", out_channels=2), "needs features of nodes (points), and"),
        (node("y", "relational_graph_conv", "nodes", out_channels=2), "takes 2 inputs, got 1"),
        (node("y", "relational_graph_conv", "nodes", "edges", out_channels=2, aggregate="max"), "aggregate"),
        (node("y", "global_pool", "edges"), "needs floating-point input, got edge [edges, 3] int32"),
        (node("y", "linear", "edges", out_features=2), "needs floating-point input, got edge [edges, 3] int32"),
        (node("y", "argmax", "edges"), "needs floating-point input, got edge [edges, 3] int32"),
        (node("y", "concat", "edges", "edges"), "needs floating-point input, got edge [edges, 3] int32"),
    ],
)
def test_ops_that_do_not_fit_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(GraphError) as caught:
        parse_graph(document(graphs(4, CI), [wrong], "y"))

    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        ([(0, 1, 0), (0, 3, 0)], "the first is edge 1: it leads from node 0 to node 3, and item 0 of 'nodes' has nodes "
                                 "0 to 2"),
        ([(-1, 1, 0), (3, 0, 0)], "2 edges to nowhere, the first is edge 0: it leads from node -1 to node 1"),
        ([(0, 1, 0), (0, 0, 4)], "1 edges of unknown relations, the first is edge 1 (item 0): its relation is 4, it "
                                 "must be 0 to 3"),
        ([(0, 1, -1)], "its relation is -1, it must be 0 to 3"),
    ],
)  # fmt: skip
def test_edges_to_nowhere_are_refused_on_arrival(edges: list[tuple[int, int, int]], words: str) -> None:
    with pytest.raises(InputError) as caught:
        check_request(convolution(), batch(torch.zeros(3, CI), edges))

    assert words in str(caught.value)


def test_edges_stay_within_their_own_graph() -> None:
    data = torch.tensor([[4, 0, 0], [2, 0, 0], [0, 1, 0]], dtype=torch.int32)
    nodes = Value(torch.zeros(7, CI), torch.tensor([0, 5, 5, 7]))

    fits = {"nodes": nodes, "edges": Value(data, torch.tensor([0, 2, 2, 3]))}
    assert check_request(convolution(), fits) == 3
    with pytest.raises(
        InputError, match="edge 1: it leads from node 2 to node 0, and item 2 of 'nodes' has nodes 0 to 1"
    ):
        check_request(convolution(), fits | {"edges": Value(data, torch.tensor([0, 1, 1, 3]))})
    with pytest.raises(InputError, match="edge 2: it leads from node 0 to node 1, and item 1 of 'nodes' has no nodes"):
        check_request(convolution(), fits | {"edges": Value(data, torch.tensor([0, 2, 3, 3]))})


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        (Value(torch.zeros(2, 3), torch.tensor([0, 2])), "has type torch.float32, it must be torch.int32"),
        (Value(torch.zeros(2, 2, dtype=torch.int32), torch.tensor([0, 2])), r"must be edge \[edges, 3\] int32"),
        (Value(torch.zeros(2, 3, dtype=torch.int32)), "needs offsets"),
        (Value(torch.zeros(2, 3, dtype=torch.int32), torch.tensor([0, 1])), "must rise from 0 to its 2 edges"),
        (Value(torch.zeros(2, 3, dtype=torch.int32), torch.tensor([0, 1, 2])), "equally many items"),
    ],
)
def test_what_is_no_list_of_edges_is_refused(edges: Value, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_request(convolution(), {"nodes": Value(torch.zeros(3, CI), torch.tensor([0, 3])), "edges": edges})
