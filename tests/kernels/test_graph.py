"""The graph format: what is valid, what is refused and with which words, and its JSON Schema."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lacuna_kernels
from lacuna_kernels import GraphError, Options, Value, json_schema, open_backend, parse_graph, random_weights
from tests.cases import CloudCase
from tests.kernels import networks
from tests.kernels.networks import cloud, document, node

NETWORKS = {f.__name__: f for f in (networks.spvcnn, networks.centerpoint_head, networks.vit, networks.gpt2_block)}
SCHEMA_FILE = Path(lacuna_kernels.__file__).parent / "graph.schema.json"


def segmenter() -> dict[str, Any]:
    nodes = [
        node("grid", "voxelize", "points", voxel_size_m=[0.5, 0.5, 0.5]),
        node("stem", "sparse_conv", "grid", out_channels=8, kernel_size=[3, 3, 3]),
        node("down", "sparse_conv", "stem", out_channels=16, kernel_size=[2, 2, 2], stride=[2, 2, 2], mode="strided"),
        node("up", "sparse_conv", "down", out_channels=8, mode="inverse", of="down"),
        node("sum", "add", "up", "stem"),
        node("logits", "devoxelize", "sum", "grid"),
        node("labels", "argmax", "logits"),
    ]
    return document(cloud("intensity"), nodes, "labels", "logits")


@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks_can_be_said_and_run_on_the_cpu(name: str) -> None:
    graph = parse_graph(NETWORKS[name]())
    batch = {key: _random_value(kind) for key, kind in graph.input_value_types.items()}

    result = open_backend("cpu").compile(graph, random_weights(graph, 0), Options()).submit(batch).result()

    for key, kind in graph.output_types.items():
        assert tuple(result.values[key].data.shape[1:]) == kind.shape
        assert torch.isfinite(result.values[key].data.float()).all()


def _random_value(kind: lacuna_kernels.ValueType) -> Value:
    if kind.axis.ragged:
        return CloudCase("two clouds", (150, 70), spread_m=1.0).value(kind.channels)
    return Value(torch.randn(2, *kind.shape))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_valid_by_the_json_schema(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(NETWORKS[name](), json_schema())


def test_json_schema_in_the_repository_is_the_one_of_the_ops() -> None:
    assert json.loads(SCHEMA_FILE.read_text()) == json_schema(), "run `make schema`"


def test_graph_survives_being_written_and_read() -> None:
    graph = parse_graph(segmenter())

    again = parse_graph(json.loads(json.dumps(graph.model_dump(mode="json", exclude_defaults=True))))

    assert again.types == graph.types


def edited(path: list[str | int], value: Any) -> dict[str, Any]:
    result = copy.deepcopy(segmenter())
    place: Any = result
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return result


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["format"], 2, "format"),
        (["inputs"], {}, "inputs"),
        (["outputs"], {"nothing": {}}, "output 'nothing': no node has that name"),
        (["inputs", "points", "columns"], ["y", "x", "z"], "columns of a cloud start with x, y, z"),
        (["inputs", "points", "columns"], ["x", "y", "z", "x"], "all different"),
        (["nodes", 1, "op"], "convolution", "node 'stem'"),
        (["nodes", 1, "name"], "grid", "node 'grid': the name is taken"),
        (["nodes", 1, "name"], "../stem", "name"),
        (["nodes", 1, "inputs"], ["up"], "'up' is made later (nodes stand in the order they run; cycles cannot)"),
        (["nodes", 1, "inputs"], ["stem"], "'stem' is made later"),
        (["nodes", 1, "inputs"], ["gird"], "'gird' does not exist"),
        (["nodes", 1, "inputs"], ["points"], "needs features on sites, got point [points, 4] fp32"),
        (["nodes", 1, "inputs"], ["grid", "grid"], "takes 1 inputs, got 2"),
        (["nodes", 1, "kernel_size"], [2, 3, 3], "odd kernel_size"),
        (["nodes", 1, "kernel_size"], [3, 3], "kernel_size"),
        (["nodes", 1, "kernel_size"], None, "needs kernel_size"),
        (["nodes", 1, "stride"], [2, 2, 2], "submanifold convolution takes no stride"),
        (["nodes", 1, "out_channels"], 0, "out_channels"),
        (["nodes", 1, "chanels"], 8, "node 'stem', chanels: sparse_conv has no such field; it has name, op, inputs"),
        (["nodes", 1, "kernel_size"], 3, "node 'stem', kernel_size: must be a list, such as [3, 3, 3]"),
        (["nodes", 3, "of"], "stem", "undoes 'stem', but its input lies on the sites of 'down'"),
        (["nodes", 3, "of"], None, "names the strided node"),
        (["nodes", 4, "inputs"], ["up", "down"], "needs inputs on the same sites, got those of 'grid' and 'down'"),
        (["nodes", 3, "out_channels"], 9, "needs inputs of one shape"),
        (["nodes", 5, "inputs"], ["down", "grid"], "mode nearest needs sites of 'grid', got those of 'down'"),
        (["nodes", 0, "voxel_size_m"], [0.5, 0.0, 0.5], "voxel_size_m"),
        (["nodes", 0, "voxel_size_m"], [float("nan"), 1, 1], "voxel_size_m"),
        (["nodes", 0, "range_m"], [0, 0, 0, 0.1, 5, 5], "holds no voxel"),
        (["outputs"], {"logits": {}}, "node 'labels': no output needs it"),
        (["outputs", "labels"], {"classes": ["a"], "colors": []}, "colors needs as many entries as classes"),
        (["outputs", "labels"], {"classes": ["a"]}, "names 1 classes"),
    ],
)
def test_invalid_graph_is_refused_by_name(path: list[str | int], value: Any, words: str) -> None:
    with pytest.raises(GraphError) as caught:
        parse_graph(edited(path, value))

    assert words in str(caught.value)


@pytest.mark.parametrize("garbage", [None, [], "graph", 1, {"nodes": [None]}, {"nodes": {"a": 1}}, {"format": 1}])
def test_what_is_no_graph_is_refused(garbage: Any) -> None:
    with pytest.raises(GraphError):
        parse_graph(garbage)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_graph_is_valid_or_refused_by_a_graph_error(data: st.DataObject) -> None:
    mutated = copy.deepcopy(segmenter())
    target = data.draw(st.sampled_from(mutated["nodes"]))
    key = data.draw(st.sampled_from(sorted(target)))
    target[key] = data.draw(
        st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=4))
    )

    try:
        parse_graph(mutated)
    except GraphError as error:
        assert str(error)
