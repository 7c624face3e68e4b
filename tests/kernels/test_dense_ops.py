"""Dense ops against torch's modules, and the rules of their types."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lacuna_kernels import GraphError, Value, parse_graph, walk
from tests.cases import assert_close, tolerance
from tests.kernels.networks import document, node

ROWS = {"x": {"axis": "row", "shape": [12]}}
SEQUENCE = {"x": {"axis": "sequence", "shape": [5, 12]}}
IMAGE = {"x": {"axis": "image", "shape": [4, 9, 7]}}


def run(inputs: dict[str, Any], attributes: dict[str, Any], weights: dict[str, Tensor], *tensors: Tensor) -> Tensor:
    """One node over inputs named x, x1, ...: the shapes of `inputs` hold for all."""
    names = ["x", *[f"x{i}" for i in range(1, len(tensors))]]
    graph = parse_graph(
        document(dict.fromkeys(names, inputs["x"]), [{"name": "y", "inputs": names, **attributes}], "y")
    )
    values = {name: Value(tensor) for name, tensor in zip(names, tensors, strict=True)}
    return walk(graph, {f"y.{name}": weight for name, weight in weights.items()}, values)["y"].data


def module_weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.state_dict().items() if value.is_floating_point()}


def test_linear_is_torchs_with_an_activation() -> None:
    x, module = torch.randn(3, 5, 12), nn.Linear(12, 4)

    y = run(SEQUENCE, {"op": "linear", "out_features": 4, "activation": "gelu"}, module_weights(module), x)

    assert_close(y, nn.functional.gelu(module(x)).detach(), tolerance(terms=12))


@pytest.mark.parametrize(
    ("op", "module"),
    [
        ("relu", nn.ReLU()),
        ("leaky_relu", nn.LeakyReLU()),
        ("gelu", nn.GELU()),
        ("gelu_tanh", nn.GELU("tanh")),
        ("silu", nn.SiLU()),
        ("sigmoid", nn.Sigmoid()),
        ("tanh", nn.Tanh()),
        ("softmax", nn.Softmax(-1)),
    ],
)
def test_function_is_torchs(op: str, module: nn.Module) -> None:
    x = torch.randn(6, 12) * 3

    assert_close(run(ROWS, {"op": op}, {}, x), module(x), tolerance())


def test_leaky_relu_honours_its_slope() -> None:
    y = run(ROWS, {"op": "leaky_relu", "negative_slope": 0.5}, {}, torch.full((1, 12), -2.0))

    assert torch.equal(y, torch.full((1, 12), -1.0))


def test_layer_norm_is_torchs() -> None:
    module = nn.LayerNorm(12, eps=1e-3)
    nn.init.normal_(module.weight)
    x = torch.randn(3, 5, 12) + 7

    y = run(SEQUENCE, {"op": "layer_norm", "eps": 1e-3}, module_weights(module), x)

    assert_close(y, module(x).detach(), tolerance(terms=12))


@pytest.mark.parametrize(("inputs", "module"), [(ROWS, nn.BatchNorm1d(12)), (IMAGE, nn.BatchNorm2d(4))])
def test_batch_norm_is_torchs_in_evaluation(inputs: dict[str, Any], module: nn.Module) -> None:
    x = torch.randn(8, *inputs["x"]["shape"]) * 2 + 1
    module(x)  # learns running statistics
    module.eval()

    assert_close(run(inputs, {"op": "batch_norm"}, module_weights(module), x), module(x).detach(), tolerance(terms=4))


def test_argmax_takes_the_first_of_equals() -> None:
    x = torch.zeros(2, 12)
    x[1, [3, 7]] = 1.0

    labels = run(ROWS, {"op": "argmax"}, {}, x)

    assert labels.dtype is torch.int32
    assert labels.tolist() == [0, 3]


def test_add_sums_all_inputs() -> None:
    a, b, c = torch.randn(3, 2, 12).unbind()

    assert torch.equal(run(ROWS, {"op": "add"}, {}, a, b, c), a + b + c)


def test_concat_joins_channels_of_images_and_features_of_rows() -> None:
    a, b = torch.randn(2, 3, 4, 9, 7).unbind()

    assert torch.equal(run(IMAGE, {"op": "concat"}, {}, a, b), torch.cat([a, b], 1))
    assert run(ROWS, {"op": "concat"}, {}, torch.ones(2, 12), torch.zeros(2, 12)).shape == (2, 24)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d"])
def test_image_convolution_is_torchs(op: str, groups: int) -> None:
    kind = nn.Conv2d if op == "conv2d" else nn.ConvTranspose2d
    module = kind(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=groups)
    x = torch.randn(2, 4, 9, 7)
    attributes = {
        "op": op,
        "out_channels": 6,
        "kernel_size": [3, 2],
        "stride": [2, 1],
        "padding": [1, 0],
        "groups": groups,
    }

    assert_close(run(IMAGE, attributes, module_weights(module), x), module(x).detach(), tolerance(terms=24))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_softmax_of_scaled_products(causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 5, 12).unbind()

    y = run(SEQUENCE, {"op": "attention", "heads": 3, "causal": causal}, {}, q, k, v)

    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 2
        if causal:
            scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        assert_close(y[..., part], scores.softmax(-1) @ v[..., part], tolerance(terms=12, layers=2))


def test_attention_takes_the_three_side_by_side() -> None:
    q, k, v = torch.randn(3, 2, 5, 4).unbind()
    joined = {"x": {"axis": "sequence", "shape": [5, 12]}}
    alone = {"x": {"axis": "sequence", "shape": [5, 4]}}

    y = run(joined, {"op": "attention", "heads": 2}, {}, torch.cat([q, k, v], -1))

    assert_close(y, run(alone, {"op": "attention", "heads": 2}, {}, q, k, v), tolerance())


def test_images_become_tokens_row_by_row_and_one_can_be_picked() -> None:
    x = torch.randn(2, 4, 9, 7)
    nodes = [
        node("tokens", "image_to_sequence", "x"),
        node("with_first", "prepend_token", "tokens"),
        node("placed", "position_embedding", "with_first"),
        node("y", "select_token", "placed", index=8),
    ]
    weights = {"with_first.weight": torch.randn(4), "placed.weight": torch.randn(64, 4)}

    y = walk(parse_graph(document(IMAGE, nodes, "y")), weights, {"x": Value(x)})["y"].data

    assert_close(y, x[:, :, 1, 0] + weights["placed.weight"][8], tolerance())


@pytest.mark.parametrize(
    ("inputs", "attributes", "words"),
    [
        (IMAGE, {"op": "linear", "out_features": 3}, "needs rows, tokens, points, sites or clouds of features"),
        (ROWS, {"op": "attention", "heads": 1}, "needs a sequence"),
        (SEQUENCE, {"op": "attention", "heads": 5}, "5 heads do not divide 4 features"),
        (SEQUENCE, {"op": "select_token", "index": 5}, "there is no token 5 among 5"),
        (ROWS, {"op": "conv2d", "out_channels": 1, "kernel_size": [1, 1]}, "needs an image"),
        (IMAGE, {"op": "conv2d", "out_channels": 1, "kernel_size": [10, 1]}, "leaves no pixel"),
        (IMAGE, {"op": "conv2d", "out_channels": 2, "kernel_size": [1, 1], "groups": 3}, "3 groups do not divide 2"),
        (ROWS, {"op": "global_pool"}, "needs points or sites"),
        (ROWS, {"op": "sparse_to_bev"}, "needs features on sites"),
    ],
)
def test_input_of_the_wrong_kind_is_refused(inputs: dict[str, Any], attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(GraphError, match=words):
        parse_graph(document(inputs, [{"name": "y", "inputs": ["x"], **attributes}], "y"))


@pytest.mark.parametrize(("inputs", "shape"), [(ROWS, (4, 12)), (SEQUENCE, (4, 5, 12)), (ROWS, (0, 12))])
def test_features_are_picked_by_their_place_and_minus_one_is_a_zero(
    inputs: dict[str, Any], shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape)

    y = run(inputs, {"op": "select_features", "indices": [11, -1, 0, 0]}, {}, x)

    assert torch.equal(y, torch.stack([x[..., 11], torch.zeros(shape[:-1]), x[..., 0], x[..., 0]], -1))


def test_a_permutation_of_features_is_torchs_index() -> None:
    x, order = torch.randn(4, 12), torch.randperm(12)

    assert torch.equal(run(ROWS, {"op": "select_features", "indices": order.tolist()}, {}, x), x[..., order])


def test_a_zero_is_put_beside_numbers_that_are_not_finite() -> None:
    y = run(ROWS, {"op": "select_features", "indices": [-1, 3]}, {}, torch.full((1, 12), torch.nan))

    assert y[0, 0] == 0
    assert y[0, 1].isnan()


@pytest.mark.parametrize(
    ("indices", "message"),
    [([0, 12], "indices reach 12, its input has 12 features"), ([-2], "greater than or equal to -1"), ([], "at least")],
)
def test_indices_that_are_no_features_are_refused(indices: list[int], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        run(ROWS, {"op": "select_features", "indices": indices}, {}, torch.ones(1, 12))
