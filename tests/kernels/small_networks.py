"""Small networks of every kind for a GPU, batches for them, and how results are held against each other."""

from collections.abc import Callable, Mapping

import torch

from lacuna_kernels import Axis, Batch, Graph, Options, Program, Value, open_backend, parse_graph, random_weights
from lacuna_kernels.zoo import centerpoint_encoder, kronecker_mlp, minkunet, rgcn
from tests.cases import CloudCase, assert_close, assert_labels_follow
from tests.kernels.networks import centerpoint_head, cloud, document, gpt2_block, graph_residual, node, spvcnn, vit

SMALL = (8, 8, 16, 16, 24, 24, 16, 8, 8)
Compiled = Callable[..., Program]
"""What compiles a network in a precision, with options."""


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
