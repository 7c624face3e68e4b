"""Whole networks on clouds: a ragged batch gives what each cloud gives alone."""

from collections.abc import Callable, Mapping

import pytest
import torch

from lacuna_kernels import (
    InputError,
    Options,
    Precision,
    Value,
    check_request,
    collate,
    open_backend,
    parse_graph,
    random_weights,
    split,
)
from lacuna_kernels.cpu import walk
from lacuna_kernels.graph import Graph
from lacuna_kernels.types import Batch, outline
from tests.cases import CLOUDS, CloudCase, assert_close, assert_labels_follow, tolerance
from tests.kernels.networks import centerpoint_head, cloud, document, gpt2_block, node, spvcnn, vit


def pooled() -> dict[str, object]:
    nodes = [
        node("grid", "voxelize", "points", voxel_size_m=[0.3, 0.3, 0.3], reduce="first"),
        node("stem", "sparse_conv", "grid", out_channels=8, kernel_size=[3, 3, 3], activation="relu"),
        node("mean", "global_pool", "stem"),
        node("max", "global_pool", "stem", mode="max"),
        node("both", "concat", "mean", "max"),
        node("y", "linear", "both", out_features=3),
    ]
    return document(cloud("intensity"), nodes, "y", "stem")


NETWORKS = {"spvcnn": spvcnn, "centerpoint": centerpoint_head, "pooled": pooled}
ALL_NETWORKS: dict[str, Callable[[], dict[str, object]]] = NETWORKS | {"vit": vit, "gpt2": gpt2_block}
RAGGED = CloudCase("ragged", (300, 0, 1, 130))


@pytest.fixture(params=NETWORKS)
def graph(request: pytest.FixtureRequest) -> Graph:
    return parse_graph(NETWORKS[request.param]())


@pytest.mark.parametrize("case", CLOUDS, ids=str)
def test_a_ragged_batch_gives_what_each_cloud_gives_alone(graph: Graph, case: CloudCase) -> None:
    program = open_backend("cpu").compile(graph, random_weights(graph, 0), Options())
    whole = {"points": case.value(graph.types["points"].channels)}
    ones = [1] * len(case.points)

    together = split(program.submit(whole).result().values, ones)

    for alone, answer in zip(split(whole, ones), together, strict=True):
        for name, expected in program.submit(alone).result().values.items():
            assert_close(answer[name].data, expected.data, tolerance(terms=1000, layers=10))
            if expected.coordinates is not None:
                assert answer[name].coordinates is not None
                assert torch.equal(answer[name].coordinates, expected.coordinates)


def test_no_clouds_at_all_give_no_rows(graph: Graph) -> None:
    program = open_backend("cpu").compile(graph, random_weights(graph, 0), Options())
    nothing = Value(torch.zeros(0, graph.types["points"].channels), torch.tensor([0]))

    found = program.submit({"points": nothing}).result().values

    assert {name: value.data.shape[1:] for name, value in found.items()} == {
        name: kind.shape for name, kind in graph.output_types.items()
    }
    assert not any(len(value.data) for value in found.values())


@pytest.mark.parametrize("network", [vit, gpt2_block], ids=["vit", "gpt2"])
def test_no_rows_give_no_rows(network: Callable[[], dict[str, object]]) -> None:
    graph = parse_graph(network())
    ((name, kind),) = graph.input_value_types.items()

    found = (
        open_backend("cpu")
        .compile(graph, random_weights(graph, 0), Options())
        .submit({name: Value(torch.zeros(0, *kind.shape))})
    )

    assert [tuple(value.data.shape) for value in found.result().values.values()] == [
        (0, *kind.shape) for kind in graph.output_types.values()
    ]


def batch_of(graph: Graph) -> dict[str, Value]:
    """A ragged batch of clouds, or a few random rows."""
    return {
        name: RAGGED.value(kind.channels)
        if kind.axis.ragged
        else Value(torch.randn(3, *kind.shape, generator=torch.Generator().manual_seed(0)))
        for name, kind in graph.input_value_types.items()
    }


def assert_same_values(graph: Graph, found: Mapping[str, Value], expected: Mapping[str, Value]) -> None:
    relative = tolerance(terms=1000, layers=10)
    for name, value in expected.items():
        data, source = found[name].data.cpu(), graph.by_name[name].inputs[0]
        if value.data.is_floating_point():
            assert_close(data, value.data, relative)
        else:
            assert data.shape == value.data.shape
            assert_labels_follow(data, expected[source].data, relative)
        for part in ("offsets", "coordinates"):
            rows, wanted = getattr(found[name], part), getattr(value, part)
            assert (rows is None) == (wanted is None)
            assert wanted is None or torch.equal(rows.cpu(), wanted)


@pytest.mark.parametrize("network", ALL_NETWORKS.values(), ids=ALL_NETWORKS)
def test_the_reference_makes_no_tensor_but_where_its_inputs_lie(network: Callable[[], dict[str, object]]) -> None:
    graph = parse_graph(network())
    weights, batch = random_weights(graph, 0), batch_of(graph)
    expected = walk(graph, weights, batch)

    with torch.device("meta"):  # what names no device would have no numbers, and meet none of its inputs
        found = walk(graph, weights, batch)

    assert_same_values(graph, found, expected)


def on_gpu(batch: Batch) -> dict[str, Value]:
    return {
        name: Value(value.data.cuda(), None if value.offsets is None else value.offsets.cuda())
        for name, value in batch.items()
    }


@pytest.mark.gpu
@pytest.mark.parametrize("network", ALL_NETWORKS.values(), ids=ALL_NETWORKS)
def test_the_reference_gives_on_a_gpu_what_it_gives_on_the_cpu(network: Callable[[], dict[str, object]]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    graph = parse_graph(network())
    weights, batch = random_weights(graph, 0), batch_of(graph)
    expected = walk(graph, weights, batch)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 would round like 10 bits
        found = walk(graph, {name: weight.cuda() for name, weight in weights.items()}, on_gpu(batch))

    assert all(value.data.is_cuda for value in found.values())
    assert_same_values(graph, found, expected)


def test_collate_and_split_undo_each_other() -> None:
    batches = [{"points": case.value()} for case in CLOUDS]

    parts = split(collate(batches), [len(case.points) for case in CLOUDS])

    for part, batch in zip(parts, batches, strict=True):
        assert torch.equal(part["points"].data, batch["points"].data)
        assert torch.equal(part["points"].offsets, batch["points"].offsets)


def test_an_outline_is_what_is_collated_without_the_data() -> None:
    batches = [{"points": case.value(), "rows": Value(torch.zeros(len(case.points), 2).half())} for case in CLOUDS]
    whole, found = collate(batches), outline(batches)

    assert found.keys() == whole.keys()
    for name, value in found.items():
        assert value.data.is_meta
        assert (value.data.shape, value.data.dtype) == (whole[name].data.shape, whole[name].data.dtype)
        assert value.items == whole[name].items
    assert torch.equal(found["points"].offsets, whole["points"].offsets)
    assert outline(batches[:1]) is batches[0]


POINTS, ENDS = torch.zeros(3, 4), torch.tensor([0, 3])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Value(torch.zeros(3, 5), ENDS), r"has shape \[3, 5\], it must be point \[points, 4\]"),
        (Value(torch.zeros(3, 4).double(), ENDS), "has type torch.float64, it must be torch.float32"),
        (Value(POINTS), "needs offsets"),
        (Value(POINTS, torch.tensor([0, 2])), "must rise from 0 to its 3 points"),
        (Value(POINTS, torch.tensor([1, 3])), "must rise from 0 to its 3 points"),
        (Value(POINTS, torch.tensor([0, 2, 1, 3])), "must rise"),
        (Value(torch.full((3, 4), torch.nan), ENDS), "3 points that are not finite, the first is point 0"),
        (
            Value(torch.tensor([[0, 0, 0, 0], [0, torch.inf, 0, 0]]), torch.tensor([0, 2])),
            "1 points that are not finite",
        ),
        (Value(torch.full((3, 4), 1e9), ENDS), "a point lies 3.33e[+]09 voxels"),
        (Value(torch.full((3, 4), -3e38), ENDS), "a point lies inf voxels"),
    ],
)
def test_a_bad_cloud_is_refused_with_the_numbers(value: Value, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_request(parse_graph(pooled()), {"points": value})


@pytest.mark.parametrize(("names", "words"), [([], "'points' is missing"), (["points", "more"], "'more' is not known")])
def test_wrong_input_names_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_request(parse_graph(pooled()), {name: Value(POINTS, ENDS) for name in names})


@pytest.mark.parametrize(
    ("precision", "fits"), [(Precision.FP32, True), (Precision.BF16, True), (Precision.FP16, False)]
)
def test_what_fp16_cannot_hold_is_refused_where_it_computes(precision: Precision, fits: bool) -> None:
    graph, batch = parse_graph(pooled()), {"points": Value(torch.full((3, 4), 70_000.0), ENDS)}

    if fits:
        assert check_request(graph, batch, precision) == 1
    else:
        with pytest.raises(InputError, match="has a value of 70000; this model runs in fp16, whose largest is 65504"):
            check_request(graph, batch, precision)
