"""A network's inputs and outputs as named tensors, and back."""

from typing import Any

import pytest
import torch

from lacuna_kernels import Graph, parse_graph, random_weights, walk
from lacuna_service.codecs.inference import InferRequest, WireTensor
from lacuna_service.errors import BadRequest
from lacuna_service.signature import Signature
from tests.service import networks


def run(graph: Graph, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    signature = Signature(graph)
    return signature.tensors(walk(graph, random_weights(graph, 0), signature.values(tensors)))


def test_a_dense_network_keeps_its_names() -> None:
    signature = Signature(networks.tiny_kronecker())
    assert list(map(str, signature.inputs)) == ["x FP32 [-1, 16]"]
    assert list(map(str, signature.outputs)) == ["label INT32 [-1]", "probabilities FP32 [-1, 4]"]


def test_a_cloud_is_points_and_optional_offsets() -> None:
    signature = Signature(networks.tiny_minkunet())
    assert list(map(str, signature.inputs)) == ["POINTS FP32 [-1, 4]", "OFFSETS INT32 [-1] (optional)"]


def test_several_clouds_are_told_apart_by_name() -> None:
    document = {
        "format": 1,
        "inputs": {name: {"axis": "point", "columns": ["x", "y", "z"]} for name in ("lidar", "radar")},
        "nodes": [
            node
            for name in ("lidar", "radar")
            for node in (
                {"name": f"{name}_grid", "op": "voxelize", "inputs": [name], "voxel_size_m": [1, 1, 1]},
                {"name": f"{name}_mean", "op": "global_pool", "inputs": [f"{name}_grid"], "mode": "mean"},
            )
        ],
        "outputs": {"lidar_mean": {}, "radar_mean": {}},
    }
    signature = Signature(parse_graph(document))
    assert [spec.name for spec in signature.inputs] == [
        "POINTS_lidar",
        "OFFSETS_lidar",
        "POINTS_radar",
        "OFFSETS_radar",
    ]
    values = signature.values({"POINTS_lidar": torch.ones(3, 3), "POINTS_radar": torch.zeros(2, 3)})
    assert len(values["lidar"].data) == 3 and len(values["radar"].data) == 2


def test_graphs_are_points_and_edges() -> None:
    signature = Signature(networks.tiny_rgcn())
    assert list(map(str, signature.inputs)) == [
        "POINTS FP32 [-1, 5]",
        "OFFSETS INT32 [-1] (optional)",
        "EDGES INT32 [-1, 3]",
        "EDGE_OFFSETS INT32 [-1] (optional)",
    ]
    nodes, edges = torch.zeros(7, 5), torch.zeros(4, 3, dtype=torch.int32)
    alone = signature.values({"POINTS": nodes, "EDGES": edges})
    assert alone["nodes"].offsets.tolist() == [0, 7] and alone["edges"].offsets.tolist() == [0, 4]
    offsets = {"OFFSETS": torch.tensor([0, 3, 7]), "EDGE_OFFSETS": torch.tensor([0, 0, 4])}
    several = signature.values({"POINTS": nodes, "EDGES": edges, **offsets})
    assert several["nodes"].items == several["edges"].items == 2
    with pytest.raises(BadRequest, match="'EDGE_OFFSETS' is missing: 'OFFSETS' tells of 2 items"):
        signature.values({"POINTS": nodes, "EDGES": edges, "OFFSETS": torch.tensor([0, 3, 7])})


def test_edges_of_several_kinds_of_nodes_are_told_apart_by_name() -> None:
    layer = {"op": "relational_graph_conv", "out_channels": 2}
    document = {
        "format": 1,
        "inputs": {
            "x": {"axis": "point", "shape": [4]},
            "near": {"axis": "edge", "nodes": "x", "relations": 2},
            "far": {"axis": "edge", "nodes": "x", "relations": 3},
        },
        "nodes": [{"name": "a", "inputs": ["x", "near"], **layer}, {"name": "b", "inputs": ["a", "far"], **layer}],
        "outputs": {"b": {}},
    }
    names = [spec.name for spec in Signature(parse_graph(document)).inputs]
    assert names == ["POINTS", "OFFSETS", "EDGES_near", "EDGE_OFFSETS_near", "EDGES_far", "EDGE_OFFSETS_far"]


def test_nodes_without_their_edges_are_refused() -> None:
    signature = Signature(networks.tiny_rgcn())
    with pytest.raises(BadRequest, match="input 'EDGES' is missing"):
        signature.values({"POINTS": torch.zeros(7, 5)})
    with pytest.raises(BadRequest, match="a body without a header serves models of one input"):
        signature.batch(InferRequest(raw=memoryview(bytearray(20))))


def test_without_offsets_there_is_one_cloud() -> None:
    points = networks.tensor(networks.cloud(50))
    alone = run(networks.tiny_minkunet(), POINTS=points)
    same = run(networks.tiny_minkunet(), POINTS=points, OFFSETS=torch.tensor([0, 50], dtype=torch.int32))
    assert torch.equal(alone["labels"], same["labels"]) and alone["labels"].shape == (50,)


def test_sites_come_with_their_coordinates_and_clouds_one_row_each() -> None:
    points = torch.tensor([[0.1, 0.1, 0.1], [0.2, 0.1, 0.1], [-0.1, 0.1, 0.1], [5.0, 0.1, 0.1]])
    found = run(networks.tiny_encoder(), POINTS=points, OFFSETS=torch.tensor([0, 3, 4], dtype=torch.int32))
    assert found["features_COORDINATES"].tolist() == [[0, 0, 0, 0], [0, -1, 0, 0], [1, 10, 0, 0]]
    assert found["features"].shape == (3, 4) and found["embedding"].shape == (2, 4)


def test_raw_body_is_as_many_rows_as_it_holds() -> None:
    signature = Signature(networks.tiny_minkunet())
    value = signature.batch(InferRequest(raw=memoryview(bytearray(5 * 16))))["points"]
    assert value.data.shape == (5, 4) and value.offsets is not None and value.offsets.tolist() == [0, 5]
    with pytest.raises(BadRequest, match="no multiple of the 16"):
        signature.batch(InferRequest(raw=memoryview(bytearray(5 * 16 + 1))))


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ([("POINTS", "FP32", (2, 4)), ("extra", "FP32", (2, 4))], "'extra' is not known"),
        ([("points", "FP32", (2, 4))], "'points' is not known; the model takes POINTS FP32"),
        ([("OFFSETS", "INT32", (2,))], "'POINTS' is missing"),
        ([("POINTS", "FP64", (2, 4))], "datatype 'FP64', it must be FP32"),
        ([("POINTS", "BYTES", (2, 4))], "datatype 'BYTES', it must be FP32"),
        ([("POINTS", "FP32", (2, 3))], r"shape \[2, 3\], it must be \[-1, 4\]"),
        ([("POINTS", "FP32", (8,))], "must be"),
        ([("POINTS", "FP32", ())], "must be"),
        ([("POINTS", "FP32", (2, 4)), ("OFFSETS", "INT64", (2,))], "INT32"),
        ([("POINTS", "FP32", (2, 4)), ("OFFSETS", "INT32", (2, 4))], "must be"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tensors: Any, match: str) -> None:
    signature = Signature(networks.tiny_minkunet())
    sent = InferRequest(inputs=tuple(WireTensor(*tensor, data=[0] * 8) for tensor in tensors))
    with pytest.raises(BadRequest, match=match):
        signature.batch(sent)


def test_wanted_outputs_are_those_named_or_all() -> None:
    signature = Signature(networks.tiny_kronecker())
    everything = signature.wanted(InferRequest(binary_default=True))
    assert [(spec.name, binary) for spec, binary in everything] == [("label", True), ("probabilities", True)]
    one = signature.wanted(InferRequest(outputs=(("probabilities", False),)))
    assert [(spec.name, binary) for spec, binary in one] == [("probabilities", False)]
    with pytest.raises(BadRequest, match="the model gives label, probabilities"):
        signature.wanted(InferRequest(outputs=(("logits", False),)))
