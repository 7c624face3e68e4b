"""Which layers the CUDA backend makes of a network: what runs together, and what is written side by side."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lacuna_kernels import Precision, Value, parse_graph, random_weights, walk
from lacuna_kernels.cuda.fusion import Layer, Part, fuse, joins
from lacuna_kernels.graph import Graph
from lacuna_kernels.ops.activation import activate
from lacuna_kernels.ops.context import Context
from lacuna_kernels.zoo import centerpoint_encoder, kronecker_mlp, minkunet, rgcn
from tests.cases import CLOUDS, GRAPHS, assert_close, tolerance
from tests.kernels.networks import cloud, document, graph_residual, node


def rows(*nodes: dict[str, Any], features: int = 8, outputs: tuple[str, ...] = ("y",)) -> Graph:
    return parse_graph(document({"x": {"axis": "row", "dtype": "fp32", "shape": [features]}}, list(nodes), *outputs))


def run_layers(layers: list[Layer], graph: Graph, values: dict[str, Value]) -> dict[str, Value]:
    """What fused layers mean: the op without its activation, then the residual, then the activation."""
    context = Context(dict(graph.types))
    values = dict(values)
    for layer in layers:
        changes = {"bias": "bias" in layer.weights} if hasattr(layer.node, "bias") else {}
        if hasattr(layer.node, "activation"):
            changes["activation"] = None
        plain = layer.node.model_copy(update=changes)
        y = plain.reference([values[name] for name in layer.node.inputs], layer.weights, context)
        if layer.residual is not None:
            y = replace(y, data=y.data + values[layer.residual].data)
        values[layer.output] = replace(y, data=activate(y.data, layer.activation, layer.slope))
    return values


def dense_chain() -> Graph:
    return rows(
        node("a", "linear", "x", out_features=8),
        node("a_norm", "batch_norm", "a"),
        node("a_relu", "leaky_relu", "a_norm", negative_slope=0.2),
        node("b", "kronecker_linear", "a_relu", patterns=[[2, 2, 2, 2], [1, 4, 4, 2]], bias=False),
        node("b_norm", "batch_norm", "b"),
        node("sum", "add", "a_relu", "b_norm"),
        node("y", "gelu", "sum"),
    )


NETWORKS: dict[str, Callable[[], Graph]] = {
    "dense": dense_chain,
    "minkunet": lambda: minkunet(5, width=0.25, voxel_size_m=0.5),
    "centerpoint": lambda: centerpoint_encoder(channels=(4, 4, 8, 8)),
    "mlp": lambda: kronecker_mlp([[(1, 4, 8, 2), (2, 4, 4, 1)]], 3, normalise=True),
    "rgcn": lambda: rgcn(3, 8, GRAPHS[1].relations, layers=3),
    "graph residual": lambda: parse_graph(graph_residual(GRAPHS[1].relations)),
}


def inputs_of(graph: Graph) -> dict[str, Value]:
    name, kind = next(iter(graph.input_value_types.items()))
    if "edges" in graph.inputs:
        return GRAPHS[1].batch(kind.channels)
    return {name: CLOUDS[0].value(kind.channels) if kind.axis.ragged else Value(torch.randn(7, *kind.shape))}


@pytest.mark.parametrize("name", NETWORKS)
def test_fused_layers_mean_what_the_network_means(name: str) -> None:
    graph = NETWORKS[name]()
    weights, inputs = random_weights(graph, 3), inputs_of(graph)
    expected = walk(graph, weights, inputs)

    found = run_layers(fuse(graph, weights, Precision.FP32), graph, inputs)

    for output, value in expected.items():
        if value.data.is_floating_point():
            assert_close(found[output].data, value.data, tolerance(terms=1000, layers=20))


def test_a_graph_convolution_takes_its_norm_sum_and_activation_along() -> None:
    graph = NETWORKS["graph residual"]()
    layers = fuse(graph, random_weights(graph, 0), Precision.FP16)

    assert [(layer.output, layer.residual, layer.activation) for layer in layers] == [
        ("stem", None, "relu"),
        ("first_relu", None, "relu"),
        ("y", "stem", "leaky_relu"),
        ("pooled", None, None),
    ]


def test_norm_sum_and_activation_run_with_the_op_before_them() -> None:
    layers = fuse(dense_chain(), random_weights(dense_chain(), 0), Precision.FP16)

    assert [(layer.node.name, layer.output, layer.residual) for layer in layers] == [
        ("a", "a_relu", None),
        ("b", "y", "a_relu"),
    ]


def test_every_convolution_of_minkunet_takes_its_norm_sum_and_activation_along() -> None:
    graph = minkunet(19)
    layers = fuse(graph, random_weights(graph, 0), Precision.FP16)
    ops = [layer.node.op for layer in layers]

    assert ops.count("sparse_conv") == 42  # of 49: seven are shortcuts of others
    assert sorted({*ops}) == ["argmax", "concat", "linear", "sparse_conv", "voxelize"]
    assert sum(layer.residual is not None for layer in layers) == 9
    assert sum(layer.shortcut is not None for layer in layers) == 7


CUBE = {"out_channels": 8, "kernel_size": [3, 3, 3], "bias": False}
VOXELS = node("grid", "voxelize", "points", voxel_size_m=[0.1, 0.1, 0.1])


def test_a_norm_after_a_sum_scales_the_shortcut_too() -> None:
    nodes = [
        *(VOXELS, node("a", "sparse_conv", "grid", **CUBE)),
        node("b", "sparse_conv", "grid", **CUBE | {"kernel_size": [1, 1, 1]}),
        *(node("both", "add", "a", "b"), node("y", "batch_norm", "both")),
    ]
    graph = parse_graph(document(cloud("intensity"), nodes, "y"))
    weights = random_weights(graph, 0)

    _, layer = fuse(graph, weights, Precision.FP32)

    scale = weights["y.weight"] / (weights["y.running_var"] + graph.by_name["y"].eps).sqrt()
    assert layer.shortcut == "grid"
    assert torch.allclose(layer.weights["weight"], weights["a.weight"] * scale)
    assert torch.allclose(layer.weights["shortcut"], weights["b.weight"][0] * scale)


@pytest.mark.parametrize(
    ("mode", "outputs", "ops"),
    [
        ("nearest", ["labels"], ["voxelize", "argmax"]),
        ("nearest", ["labels", "points_"], ["voxelize", "devoxelize", "argmax"]),
        ("trilinear", ["labels"], ["voxelize", "devoxelize", "argmax"]),
    ],
    ids=["fused", "is an output", "trilinear"],
)
def test_labels_are_taken_at_voxels_if_nobody_asks_for_scores(mode: str, outputs: list[str], ops: list[str]) -> None:
    nodes = [VOXELS, node("points_", "devoxelize", "grid", "grid", mode=mode), node("labels", "argmax", "points_")]
    graph = parse_graph(document(cloud("intensity"), nodes, *outputs))

    layers = fuse(graph, {}, Precision.FP16)

    assert [layer.node.op for layer in layers] == ops
    assert layers[-1].grid == ("grid" if len(ops) == 2 else None)


@pytest.mark.parametrize(
    "graph",
    [
        rows(node("a", "linear", "x", out_features=8), node("y", "relu", "a"), outputs=("y", "a")),
        rows(node("a", "linear", "x", out_features=8), node("b", "relu", "a"), node("y", "add", "a", "b")),
        rows(node("a", "linear", "x", out_features=8), node("y", "add", "a", "a")),
        rows(node("a", "linear", "x", out_features=8, activation="relu"), node("y", "batch_norm", "a")),
        rows(node("a", "linear", "x", out_features=8), node("y", "relu", "a", precision="fp16")),
    ],
    ids=["is an output", "is read twice", "added to itself", "norm after activation", "other precision"],
)
def test_what_somebody_else_needs_is_not_fused(graph: Graph) -> None:
    layers = fuse(graph, random_weights(graph, 0), Precision.FP32)

    assert [layer.output for layer in layers] == [node.name for node in graph.nodes]


def test_a_node_may_ask_for_another_precision() -> None:
    graph = rows(node("a", "linear", "x", out_features=8), node("y", "linear", "a", out_features=2, precision="fp32"))

    assert [layer.precision for layer in fuse(graph, random_weights(graph, 0), Precision.FP16)] == ["fp16", "fp32"]


def test_concatenated_convolutions_are_written_side_by_side() -> None:
    graph = minkunet(19)
    parts = joins(graph, fuse(graph, random_weights(graph, 0), Precision.FP16))

    assert {(part.whole, part.start, part.width) for part in parts.values()} == {
        *(("up1_joined", 0, 256), ("up1_joined", 256, 128), ("up2_joined", 0, 128), ("up2_joined", 128, 64)),
        *(("up3_joined", 0, 96), ("up3_joined", 96, 32), ("up4_joined", 0, 96), ("up4_joined", 96, 32)),
    }


def test_what_a_linear_layer_or_the_caller_reads_is_not_part_of_another() -> None:
    nodes = [
        node("grid", "voxelize", "points", voxel_size_m=[0.1, 0.1, 0.1]),
        *(node(name, "sparse_conv", "grid", out_channels=8, kernel_size=[3, 3, 3]) for name in ("a", "b", "c")),
        node("lin", "linear", "b", out_features=2),
        node("cat", "concat", "a", "b", "c"),
        node("y", "sparse_conv", "cat", out_channels=2, kernel_size=[1, 1, 1]),
    ]
    graph = parse_graph(document(cloud("intensity"), nodes, "y", "lin", "c"))

    parts = joins(graph, fuse(graph, random_weights(graph, 0), Precision.FP32))

    assert parts == {"a": Part("cat", 0, 8)}
