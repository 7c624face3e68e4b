"""Trained layers become a network in the order that is told, and dense ones chains, layer by layer."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lacuna_kernels import ConversionError, Model, Value, load_model, parse_graph, random_weights, save_model, walk
from lacuna_kernels.convert import (
    Hints,
    LayerReport,
    Layers,
    chain_rule,
    in_order,
    linear_layers,
    read_checkpoint,
    sequence,
    sparsify,
)
from lacuna_kernels.convert.chains import balanced, matrix_of
from lacuna_kernels.ops.kronecker_linear import KroneckerLinear
from tests.cases import assert_close, tolerance
from tests.kernels.networks import document, node


def network(module: nn.Module, activation: str | None = None, steps: Sequence[str] | None = None) -> Model:
    layers = Layers(module.state_dict(), Hints())
    return sequence(layers, steps or in_order(layers, activation))


def outputs(model: Model, x: Tensor) -> Tensor:
    (y,) = walk(model.graph, model.weights, {"x": Value(x)}).values()
    return y.data


def trained(*modules: nn.Module) -> nn.Sequential:
    """A network with statistics and norms that are not those of the start, ready to be asked."""
    net = nn.Sequential(*modules)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    net(torch.randn(50, 12) * 2 + 1)
    return net.eval()


def test_layers_stand_in_the_order_of_the_file_with_the_activation_between():
    net = trained(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 7, bias=False), nn.ReLU(), nn.Linear(7, 3))
    x = torch.randn(5, 12)

    model = network(net, "relu")

    assert [(n.name, n.op, n.activation) for n in model.graph.nodes] == [
        ("linear0", "linear", "relu"),
        ("linear2", "linear", "relu"),
        ("linear4", "linear", None),
    ]
    assert_close(outputs(model, x), net(x).detach(), tolerance(terms=20, layers=3))


def test_norms_activations_and_the_end_stand_where_they_are_told():
    net = trained(
        *(nn.BatchNorm1d(12), nn.Linear(12, 20), nn.BatchNorm1d(20), nn.GELU()),
        *(nn.LayerNorm(20), nn.Tanh(), nn.Linear(20, 4), nn.Softmax(-1)),
    )
    x = torch.randn(5, 12)

    model = network(net, steps=["0", "1", "2", "gelu", "4", "tanh", "6", "softmax"])

    assert [n.op for n in model.graph.nodes] == [
        "batch_norm",
        "linear",
        "batch_norm",
        "gelu",
        "layer_norm",
        "tanh",
        "linear",
        "softmax",
    ]
    assert_close(outputs(model, x), net(x).detach(), tolerance(terms=20, layers=8))


def test_a_function_may_be_used_again():
    net = trained(nn.Linear(12, 4), nn.ReLU(), nn.Tanh(), nn.Tanh())
    x = torch.randn(5, 12)

    model = network(net, steps=["0", "relu", "tanh", "tanh", "argmax"])

    assert torch.equal(outputs(model, x), net(x).argmax(-1).int())


def test_some_layers_may_be_left_out():
    net = trained(nn.Linear(12, 4), nn.Linear(4, 2))

    assert [n.name for n in network(net, steps=["0"]).graph.nodes] == ["linear0"]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["0", "1", "gleu"], "'gleu' is no layer of the file .'0', '1'. nor a function"),
        (["1", "0"], "layer '0' takes 12 features, 2 come to it from 'linear1'; --layers tells"),
        (["relu"], "there is no layer"),
    ],
)
def test_a_network_that_cannot_be_is_refused(steps, message):
    with pytest.raises(ConversionError, match=message):
        network(trained(nn.Linear(12, 4), nn.Linear(4, 2)), steps=steps)


def test_only_of_the_first_layer_another_width_of_the_input_is_the_reason():
    layers = Layers(trained(nn.Linear(12, 4)).state_dict(), Hints())
    with pytest.raises(ConversionError, match="takes 12 features, 11 come to it from 'x'; --in-features tells"):
        sequence(layers, ["0"], 11)


@pytest.mark.parametrize(
    ("names", "nodes"),
    [
        (["block/0/fc", "größe x"], ["block_0_fc", "gr__e_x"]),
        (["a.b", "a_b"], ["a_b", "a_b_2"]),
        (["x", "0"], ["x_2", "linear0"]),
        (["l" * 500, "é"], ["l" * 100, "linear_"]),
        (["", "2"], ["linear", "linear2"]),
    ],
)
def test_layers_of_any_name_become_nodes_of_their_own(names, nodes):
    first, second = torch.randn(2, 4, 4)
    layers = Layers({f"{names[0]}.weight".lstrip("."): first, f"{names[1]}.weight": second}, Hints())
    x = torch.randn(3, 4)

    model = sequence(layers, names)

    assert [n.name for n in model.graph.nodes] == nodes
    assert_close(outputs(model, x), x @ first.T @ second.T, tolerance(terms=4, layers=2))


def test_a_layer_without_a_name_of_letters_is_called_linear_or_norm():
    state = nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Linear(4, 4)).state_dict()

    model = sequence(Layers(state | {"3.factors.0": torch.ones(2, 2, 2, 1)}, Hints()), ["0", "1", "2", "3"])

    assert [n.name for n in model.graph.nodes] == ["norm0", "norm1", "linear2", "linear3"]


def test_a_layer_may_be_used_again_and_two_may_share_their_weights(tmp_path: Path):
    weight, x = torch.randn(4, 4), torch.randn(3, 4)
    layers = Layers({"a.weight": weight, "b.weight": weight}, Hints())

    save_model(sequence(layers, ["a", "b", "a"]), tmp_path)

    assert_close(outputs(load_model(tmp_path), x), x @ weight.T @ weight.T @ weight.T, tolerance(terms=4, layers=3))


def test_a_variance_below_zero_is_refused():
    net = trained(nn.Linear(12, 4), nn.BatchNorm1d(4))
    net[1].running_var[2] = -1

    with pytest.raises(ConversionError, match="layer '1': a variance is below 0"):
        network(net, steps=["0", "1"])


def test_where_activations_stand_beside_norms_must_be_told():
    with pytest.raises(ConversionError, match=r"'1' is a norm: give --layers .* such as --layers '0 relu 1 relu 2'"):
        network(trained(nn.Linear(12, 4), nn.LayerNorm(4), nn.Linear(4, 2)), "relu")


def test_layers_of_a_safetensors_file_are_ordered_by_number(tmp_path):
    net = trained(nn.Linear(12, 9), *[nn.Linear(9, 9) for _ in range(10)], nn.Linear(9, 3))
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    x = torch.randn(5, 12)

    layers = Layers(read_checkpoint(tmp_path / "net.safetensors"), Hints())

    assert list(layers) == [str(index) for index in range(12)]
    assert_close(outputs(sequence(layers, list(layers)), x), net(x).detach(), tolerance(terms=12, layers=12))


def nearly_sparse(width_out: int, width_in: int, noise: float, seed: int = 0) -> Tensor:
    """A dense weight that a Monarch chain of rank 1 misses by about `noise` of it."""
    generator = torch.Generator().manual_seed(seed)
    factors = [torch.randn(p.values, generator=generator) / p.c**0.5 for p in balanced(width_out, width_in)]
    return matrix_of(factors) + noise * torch.randn(width_out, width_in, generator=generator) * width_in**-0.5


def dense_model(noise: float = 0.0) -> Model:
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    with torch.no_grad():
        net[0].weight.copy_(nearly_sparse(128, 64, noise))
        net[2].weight.copy_(nearly_sparse(128, 128, noise, seed=1))
    return network(net, "relu")


def factorised(model: Model, **options) -> tuple[Model, dict[str, LayerReport]]:
    reports: dict[str, LayerReport] = {}
    rule = options.pop("rule", chain_rule("monarch"))
    sparse = sparsify(model, rule, on_layer=lambda report: reports.update({report.name: report}), **options)
    return sparse, reports


def test_linear_layers_become_chains_and_the_rest_of_the_network_stays():
    model, x = dense_model(), torch.randn(7, 64)

    sparse, reports = factorised(model, tolerance=0.01)

    assert [(n.name, n.op) for n in sparse.graph.nodes] == [
        ("linear0", "kronecker_linear"),
        ("linear2", "kronecker_linear"),
        ("linear4", "linear"),
    ]
    assert [n.activation for n in sparse.graph.nodes] == ["relu", "relu", None]
    assert reports["linear4"].kept == "error above 0.01"
    assert reports["linear0"].relative_error < 1e-6
    assert reports["linear0"].parameters == sum(w.numel() for name, w in sparse.weights.items() if "linear0.f" in name)
    assert_close(outputs(sparse, x), outputs(model, x), tolerance(terms=128, layers=3))


def test_the_error_of_a_report_is_that_of_the_weights_which_are_written():
    model = dense_model(noise=0.2)

    sparse, reports = factorised(model)

    for name in linear_layers(model):
        weight = model.weights[f"{name}.weight"].double()
        factors = [sparse.weights[f"{name}.factors.{index}"].double() for index in range(2)]
        missed = float((weight - matrix_of(factors)).norm() / weight.norm())
        assert reports[name].relative_error == pytest.approx(missed, rel=1e-9)
    assert 0.1 < reports["linear0"].relative_error < 0.3


def test_outputs_are_as_near_as_the_errors_of_the_layers_say():
    model, x = dense_model(noise=0.02), torch.randn(500, 64)

    sparse, reports = factorised(model, only=["linear0", "linear2"])

    expected = outputs(model, x)
    missed = float((outputs(sparse, x) - expected).norm() / expected.norm())
    together = sum(report.relative_error for report in reports.values() if not report.kept)
    assert 0.1 * together < missed < together


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"only": ["linear[02]"]}, {"linear0": "", "linear2": "", "linear4": "not asked for"}),
        (
            {"rule": chain_rule("square-dyadic")},
            {
                "linear0": "128 x 64 is not square of a power of two",
                "linear2": "",
                "linear4": "10 x 128 is not square of a power of two",
            },
        ),
        (
            {"rule": chain_rule("16,8,8,1 1,16,16,8")},
            {
                "linear0": "the chain is 128 x 128, the matrix 128 x 64",
                "linear2": "",
                "linear4": "the chain is 128 x 128, the matrix 10 x 128",
            },
        ),
        (
            {"rule": chain_rule("monarch", rank=4)},
            {"linear0": "", "linear2": "", "linear4": "1344 parameters, no fewer than dense"},
        ),
        (
            {"rule": chain_rule("monarch", blocks=16)},
            {"linear0": "", "linear2": "", "linear4": "16 blocks do not divide 10 x 128"},
        ),
        ({"rule": chain_rule("balanced-3")}, {"linear0": "", "linear2": "", "linear4": ""}),
    ],
)
def test_a_layer_that_has_no_chain_worth_it_stays_dense_and_says_why(options, kept):
    _, reports = factorised(dense_model(), **options)

    assert {name: report.kept for name, report in reports.items()} == kept


def test_a_name_of_no_linear_layer_is_refused():
    with pytest.raises(ConversionError, match=r"'fc\*' is no linear layer of the network \('linear0', "):
        factorised(dense_model(), only=["linear0", "fc*"])


def test_a_chain_of_as_many_parameters_is_not_worth_it():
    _, reports = factorised(network(trained(nn.Linear(12, 4), nn.Linear(4, 4))))

    assert (reports["linear1"].parameters, reports["linear1"].kept) == (16, "16 parameters, no fewer than dense")


def test_a_network_without_linear_layers_is_refused():
    sparse, _ = factorised(dense_model())

    with pytest.raises(ConversionError, match="has no linear layers"):
        factorised(sparse)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("monarck", {}, "is no chain"),
        ("butterfly", {}, "is no chain: there are monarch, square-dyadic, balanced-2 to balanced-64, and patterns"),
        ("balanced-1", {}, "is no chain"),
        ("balanced-²", {}, "is no chain"),
        ("balanced-65", {}, "is no chain"),
        ("", {}, "the chain is empty"),
        ("square-dyadic", {"blocks": 4}, "blocks are of the chain monarch"),
        ("1,2,2,4 4,2,2,1", {}, "not chainable"),
        ("1,2,2,1", {"rank": 2}, "patterns say their rank themselves"),
    ],
)
def test_a_chain_that_means_nothing_is_refused(text, options, message):
    with pytest.raises(ConversionError, match=message):
        chain_rule(text, **options)


def test_linear_nodes_of_any_network_are_replaced_in_place(tmp_path: Path):
    spec = {"x": {"axis": "sequence", "shape": [5, 12]}}
    nodes = [
        node("norm", "layer_norm", "x"),
        node("qkv", "linear", "norm", out_features=36, bias=False, precision="fp16"),
        node("mixed", "attention", "qkv", heads=3),
        node("out", "linear", "mixed", out_features=12),
        node("y", "add", "out", "x"),
    ]
    graph = parse_graph(document(spec, nodes, "y"))
    model = Model(graph, random_weights(graph, seed=0))

    sparse, reports = factorised(model, rule=chain_rule("monarch", blocks=3, rank=2))
    save_model(sparse, tmp_path)

    assert load_model(tmp_path).graph == sparse.graph
    qkv = sparse.graph.by_name["qkv"]
    assert isinstance(qkv, KroneckerLinear)
    assert (qkv.bias, qkv.precision, qkv.inputs) == (False, "fp16", ("norm",))
    assert "qkv.bias" not in sparse.weights
    assert torch.equal(sparse.weights["norm.weight"], model.weights["norm.weight"])
    assert reports["qkv"].parameters < reports["qkv"].dense_parameters
