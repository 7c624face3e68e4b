"""Butterflies of torch_butterfly, and permutations, mean the same as nodes: against their published definition."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lacuna_kernels import ConversionError
from lacuna_kernels.convert import Hints
from tests.kernels.converted import assert_same, convert, ks_linear, ops, patterns


def butterfly_factor(twiddle: Tensor, stride: int) -> Tensor:
    """One factor by its definition (Dao et al. 2020, section 2): blocks [[D1, D2], [D3, D4]] of diagonal matrices."""
    blocks = []
    for entries in twiddle.split(stride):  # [stride, 2, 2]
        quarters = [[torch.diag(entries[:, row, column]) for column in range(2)] for row in range(2)]
        blocks.append(torch.cat([torch.cat(quarter, 1) for quarter in quarters]))
    return torch.block_diag(*blocks)


def butterfly_matrix(twiddle: Tensor, *, increasing: bool) -> Tensor:
    """Stacks on top of each other; in each, blocks of factors whose strides rise and fall in turn."""
    stacks, blocks, log_n, half = twiddle.shape[:4]
    matrices = []
    for stack in range(stacks):
        matrix = torch.eye(2 * half, dtype=twiddle.dtype)
        for block in range(blocks):
            rising = increasing == (block % 2 == 0)
            for step in range(log_n):
                matrix = (
                    butterfly_factor(twiddle[stack, block, step], 2 ** (step if rising else log_n - 1 - step)) @ matrix
                )
        matrices.append(matrix)
    return torch.cat(matrices)


def twiddles(stacks: int, blocks: int, log_n: int) -> Tensor:
    return torch.randn(stacks, blocks, log_n, 2**log_n // 2, 2, 2) / 2**0.5


@pytest.mark.parametrize("merge", [0, 4])
@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize(("stacks", "blocks", "log_n"), [(1, 1, 1), (1, 1, 4), (3, 1, 3), (1, 3, 3), (2, 2, 4)])
def test_a_butterfly_is_its_factors_stride_by_stride(stacks, blocks, log_n, increasing, merge):
    twiddle, bias = twiddles(stacks, blocks, log_n), torch.randn(stacks * 2**log_n)
    x = torch.randn(5, 2**log_n)

    model = convert(
        {"fc.twiddle": twiddle, "fc.bias": bias}, Hints(descending=[] if increasing else ["fc"], largest=merge)
    )

    assert ops(model) == ["kronecker_linear"]
    assert len(patterns(model)) <= (stacks > 1) + blocks * log_n
    assert_same(model, x, x @ butterfly_matrix(twiddle, increasing=increasing).T + bias)


@pytest.mark.parametrize(("width_in", "width_out"), [(16, 16), (13, 16), (16, 9), (11, 43), (16, 8)])
def test_inputs_of_a_butterfly_are_padded_and_its_outputs_cut(width_in, width_out):
    stacks = -(-width_out // 16)
    twiddle, bias, x = twiddles(stacks, 1, 4), torch.randn(width_out), torch.randn(3, width_in)

    model = convert({"fc.twiddle": twiddle, "fc.bias": bias}, width=width_in)

    matrix = butterfly_matrix(twiddle, increasing=True)[:width_out, :width_in]
    assert_same(model, x, x @ matrix.T + bias)


@pytest.mark.parametrize("width", [8, 17])
def test_a_butterfly_pads_to_the_next_power_of_two(width):
    with pytest.raises(ConversionError, match="layer 'fc' takes 9 to 16 features"):
        convert({"fc.twiddle": twiddles(1, 1, 4)}, width=width)


def test_the_hadamard_matrix_is_a_butterfly():
    linalg = pytest.importorskip("scipy.linalg")
    twiddle = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).repeat(1, 1, 5, 16, 1, 1)
    x = torch.randn(3, 32)

    assert_same(convert({"twiddle": twiddle}), x, x.double() @ torch.from_numpy(linalg.hadamard(32)).double())


def test_a_complex_butterfly_is_refused_even_if_it_is_the_fourier_transform(lazylinop):
    n, order = 16, bit_reversal(lazylinop, 16)
    factors = []
    for d in (1, 2, 4, 8):  # Cooley and Tukey: strides rise behind a bit reversal
        turn = torch.exp(-1j * torch.pi * torch.arange(d) / d)
        rows = [torch.stack([torch.ones_like(turn), sign * turn], -1) for sign in (1, -1)]
        factors.append(torch.stack(rows, -2).repeat(n // 2 // d, 1, 1))
    twiddle = torch.stack(factors)[None, None]
    fourier = torch.fft.fft(torch.eye(n)).to(twiddle.dtype)
    assert torch.allclose(
        butterfly_matrix(twiddle, increasing=True)[:, order.argsort()], fourier, atol=1e-5
    )  # the oracle

    with pytest.raises(ConversionError, match="complex and unitary ones cannot be served"):
        convert({"0.permutation": order, "1.twiddle": torch.view_as_real(twiddle)})


def bit_reversal(lazylinop, n: int) -> Tensor:
    return torch.from_numpy((lazylinop.basicops.bitrev(n) @ np.arange(float(n))).astype(np.int64))


@pytest.mark.parametrize("merge", [0, 16])
def test_a_permutation_in_front_is_a_selection_or_absorbed_by_a_factor_that_holds_it(lazylinop, merge):
    twiddle, x = twiddles(1, 1, 4), torch.randn(3, 16)
    order = bit_reversal(lazylinop, 16)

    model = convert({"0.permutation": order, "1.twiddle": twiddle}, Hints(largest=merge))

    assert ops(model) == (["kronecker_linear"] if merge else ["select_features", "kronecker_linear"])
    assert_same(model, x, x[:, order] @ butterfly_matrix(twiddle, increasing=True).T)


def test_a_permutation_inside_of_blocks_is_absorbed_by_a_sparse_factor():
    values, x = torch.randn(3, 4, 5, 2), torch.randn(4, 30)
    order = torch.arange(30).reshape(3, 5, 2)
    order = torch.stack([torch.stack([block[torch.randperm(5), m] for m in range(2)], 1) for block in order]).flatten()

    model = convert({"0.permutation": order, "1.factors.0": values})

    assert ops(model) == ["kronecker_linear"]
    assert_same(model, x, ks_linear([values], torch.zeros(24), x[:, order]))


def test_a_permutation_behind_stands_behind():
    twiddle, order, x = twiddles(1, 1, 3), torch.randperm(8), torch.randn(3, 8)

    model = convert({"0.twiddle": twiddle, "1.permutation": order})

    assert ops(model) == ["kronecker_linear", "select_features"]
    assert_same(model, x, (x @ butterfly_matrix(twiddle, increasing=True).T)[:, order])


@pytest.mark.parametrize("order", [[0, 0, 1], [1, 2, 3], [[0, 1], [1, 0]]])
def test_what_is_no_permutation_is_refused(order):
    with pytest.raises(ConversionError, match="are no permutation"):
        convert({"0.permutation": torch.tensor(order)})


@pytest.mark.parametrize("shape", [(1, 1, 3, 4, 4), (1, 1, 3, 8, 2, 2), (1, 1, 3, 4, 2, 2, 2)])
def test_twiddles_of_other_shapes_are_refused(shape):
    with pytest.raises(ConversionError, match=r"a real twiddle is \[nstacks, nblocks, log n, n/2, 2, 2\]"):
        convert({"fc.twiddle": torch.ones(shape)})


def test_more_factors_than_a_node_holds_are_refused_or_merged():
    twiddle = torch.eye(2).expand(1, 22, 3, 4, 2, 2).contiguous()

    with pytest.raises(ConversionError, match="has 66 factors, 64 fit: give --merge"):
        convert({"twiddle": twiddle})
    assert len(patterns(convert({"twiddle": twiddle}, Hints(largest=8)))) == 1
