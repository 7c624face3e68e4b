"""Monarch and block-diagonal layers mean the same as nodes: against their published definition."""

import pytest
import torch

from lacuna_kernels import ConversionError
from lacuna_kernels.convert import Hints, Layers, in_order, sequence
from tests.kernels.converted import (
    NO_HINTS,
    assert_same,
    convert,
    monarch_linear,
    monarch_multiply,
    monarch_state,
    ops,
    patterns,
)


@pytest.mark.parametrize(("width_in", "width_out"), [(16, 16), (16, 48), (48, 16), (64, 100)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_monarch_layer_needs_no_permutation(width_in, width_out, bias):
    state, x = monarch_state("fc", width_in, width_out, bias=bias), torch.randn(5, width_in)

    model = convert(state)

    (k, q, p), (blocks, s, r) = state["fc.blkdiag1"].shape, state["fc.blkdiag2"].shape
    assert ops(model) == ["kronecker_linear"]
    assert patterns(model) == [(k, q, p, 1), (1, s, r, blocks)]
    assert_same(model, x, monarch_linear(x, state, "fc"))


def test_blocks_may_differ_in_number_and_go_by_other_names():
    first, second, x = torch.randn(6, 4, 5), torch.randn(8, 7, 3), torch.randn(4, 30)

    model = convert({"w1_bfly": first, "w2_bfly": second})

    assert_same(model, x, monarch_multiply(x, first, second))


@pytest.mark.parametrize(("width_in", "hidden", "width_out"), [(16, 22, 16), (13, 22, 10), (15, 17, 5), (16, 20, 12)])
def test_widths_that_blocks_do_not_divide_are_padded_and_cut(width_in, hidden, width_out):
    state = monarch_state("fc1", width_in, hidden) | monarch_state("fc2", hidden, width_out)
    x = torch.randn(5, width_in)

    layers = Layers(state, NO_HINTS)
    model = sequence(layers, in_order(layers, "sigmoid"), width_in)  # sigmoid(0) is not 0: padding comes behind it

    y = monarch_linear(torch.sigmoid(monarch_linear(x, state, "fc1")), state, "fc2")
    assert y.shape == (5, width_out)
    assert_same(model, x, y)


def test_outputs_that_end_with_a_stride_are_cut_from_the_factor_itself():
    state = monarch_state("fc", 16, 16)
    state["fc.bias"] = state["fc.bias"][:8]

    model = convert(state)

    assert ops(model) == ["kronecker_linear"]
    assert patterns(model)[-1] == (1, 2, 4, 4)
    x = torch.randn(3, 16)
    assert_same(model, x, monarch_linear(x, state, "fc"))


def test_the_width_of_a_padded_layer_without_a_bias_is_told():
    state, x = monarch_state("fc", 16, 18, bias=False), torch.randn(3, 16)

    model = convert(state, Hints(out_features={"fc": 18}))

    assert_same(model, x, monarch_linear(x, state, "fc")[:, :18])


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("width_in", [24, 22])
def test_a_block_diagonal_layer_is_one_factor_and_its_shuffle_a_selection(shuffled, width_in):
    weight, bias, x = torch.randn(4, 5, 6), torch.randn(18), torch.randn(3, width_in)

    model = convert(
        {"fc.weight": weight, "fc.bias": bias},
        Hints(shuffled=["f*"] if shuffled else []),
        source="monarch",
        width=width_in,
    )

    padded = torch.nn.functional.pad(x, (0, 24 - width_in))
    if shuffled:  # ShuffleNet's: (group, channel) to (channel, group)
        padded = padded.reshape(3, 4, 6).transpose(1, 2).flatten(1)
    assert patterns(model) == [(4, 5, 6, 1)]
    assert_same(model, x, (padded @ torch.block_diag(*weight).T)[:, :18] + bias)


def test_a_weight_of_three_axes_may_be_a_convolution_and_is_refused():
    with pytest.raises(ConversionError, match="--source monarch"):
        convert({"conv.weight": torch.ones(4, 5, 6)})


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ConversionError, match=r"\[4, 3, 2\] gives k\*q features, \[4, 5, 4\] takes l\*r"):
        convert({"blkdiag1": torch.ones(4, 3, 2), "blkdiag2": torch.ones(4, 5, 4)})


@pytest.mark.parametrize("width", [12, 17])
def test_a_monarch_layer_pads_less_than_a_feature_a_block(width):
    with pytest.raises(ConversionError, match="layer 'fc' takes 13 to 16 features"):
        convert(monarch_state("fc", 16, 16), width=width)
