"""What is true of trained layers of any package, and what is refused."""

import pytest
import torch

from lacuna_kernels import ConversionError
from lacuna_kernels.convert import Hints, parse_chain
from tests.kernels.converted import assert_same, convert, ks_linear, monarch_linear, monarch_state, ops, patterns


def test_a_layer_of_no_known_kind_is_told_with_its_keys():
    with pytest.raises(
        ConversionError, match=r"layer 'emb' is of no known kind: it has table \[3\]. Known are factors"
    ):
        convert({"fc.weight": torch.ones(2, 3), "emb.table": torch.ones(3)})


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(4, 4, dtype=torch.complex64), "is complex; only real factors can be served"),
        (torch.ones(4, 4, dtype=torch.int8), "is torch.int8, not fp16, bf16, fp32 or fp64"),
        (torch.ones(4, 4).to(torch.float8_e4m3fn), "is torch.float8_e4m3fn, not fp16, .* by their scales"),
        (torch.ones(4, 4, device="meta"), "has no numbers"),
        (torch.ones(0, 4), "has no numbers"),
        (torch.eye(4).to_sparse(), "is sparse"),
        (torch.ones(1).expand(10**9, 10**9), "repeats 1 stored numbers"),  # a file of 1 kB
        (torch.ones(2, 1).expand(2, 2), "repeats 2 stored numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_are_no_plain_numbers_are_refused(tensor, message):
    state = {"fc.weight": tensor, "rest.weight": torch.ones(2, 2)}

    with pytest.raises(ConversionError, match=rf"layer 'fc': 'weight' .* {message}"):
        convert(state)
    assert ops(convert(state, steps=["rest"])) == ["linear"]  # what is not used need not be readable


@pytest.mark.parametrize("bias", [torch.ones(2, 2), torch.tensor(1.0), torch.ones(4, 1, 1), torch.ones(4).to_sparse()])
def test_a_bias_that_is_no_vector_is_refused(bias):
    with pytest.raises(ConversionError, match=r"layer 'fc': 'bias' .* is (no vector|sparse)"):
        convert({"fc.factors.0": torch.ones(1, 4, 4, 1), "fc.bias": bias})


def test_a_permutation_of_fractions_is_refused():
    with pytest.raises(ConversionError, match=r"'permutation' \[2\] is torch.float32, not whole numbers"):
        convert({"0.permutation": torch.tensor([1.0, 0.0])})


@pytest.mark.parametrize("leaf", ["", "²", "factors.²", "9" * 5000, "factors.00"])
def test_odd_names_are_of_no_known_kind(leaf):
    with pytest.raises(ConversionError, match="of no known kind"):
        convert({f"fc.{leaf}": torch.ones(1, 2, 2, 1)})


@pytest.mark.parametrize(
    "hints",
    [
        Hints(patterns={"fd": parse_chain("1,4,4,1")}),
        Hints(out_features={"fd": 3}),
        Hints(out_features={"": 3}),
        Hints(descending=["f?", "g*"]),
        Hints(shuffled=["fd"]),
    ],
)
def test_what_is_told_of_a_layer_that_is_not_there_is_refused(hints):
    with pytest.raises(ConversionError, match=r"'(fd|g\*|)' is no layer of the file \('fc'\)"):
        convert({"fc.factors.0": torch.ones(1, 4, 4, 1)}, hints)


def test_outputs_are_cut_from_any_kind_of_factors():
    values, x = torch.randn(2, 3, 4, 2), torch.randn(5, 16)

    for name in ("fc.factors.0", "fc.0"):
        model = convert({name: values}, Hints(out_features={"fc": 3}))
        assert patterns(model) == [(2, 2, 4, 2)]
        assert_same(model, x, ks_linear([values], torch.zeros(12), x)[:, :3])


def test_a_shuffle_is_of_block_diagonal_layers_alone():
    state = {"a.weight": torch.randn(6, 6), "b.weight": torch.randn(2, 3, 3), "c.permutation": torch.randperm(6)}
    state |= monarch_state("d", 6, 6, blocks=2)

    model = convert(state, Hints(shuffled=["*"]), source="monarch")

    x = torch.randn(4, 6)
    y = (x @ state["a.weight"].T).reshape(4, 2, 3).transpose(1, 2).flatten(1)
    y = (y @ torch.block_diag(*state["b.weight"]).T)[:, state["c.permutation"]]
    assert_same(model, x, monarch_linear(y, state, "d"))
