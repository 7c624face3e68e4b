"""Factors with a small d on the sparse tensor cores of a Hopper GPU."""

import pytest
import torch

from lacuna_kernels import Precision
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.semi_structured import WAYS
from lacuna_kernels.cuda.kronecker.tiles import MMA_TILES
from lacuna_kernels.cuda.kronecker.way import Epilogue
from lacuna_kernels.cuda.kronecker_linear import ks_matmul
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.kronecker_linear import KSPattern
from tests.kernels.factors import LIMIT, operands, poisoned, product, relative_error

DEPTHS = (2, 3, 4, 6)
SIDES = [(48, 48), (64, 256), (200, 80), (96, 384), (8, 16), (328, 112), (4, 4)]
"""b and c: one tile of j and several, with and without a rest of either."""

each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
each_precision = pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16], ids=str)
each_depth = pytest.mark.parametrize("d", DEPTHS)

pytestmark = pytest.mark.gpu


@each_way
@each_precision
@each_depth
@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_a_factor_agrees_with_float64(hopper, way, precision, d, sides):
    for rows in (1, 8, 256, 777):
        pattern = (3, *sides, d)
        if not way.fits(Problem(KSPattern(*pattern), rows, precision), hopper.limits):
            continue
        x, values = operands(pattern, rows, precision)
        y = poisoned(rows, KSPattern(*pattern).width_out, dtype=x.dtype)

        ks_matmul(hopper, x, values, y, way=way)

        assert relative_error(y, product(x, values)) < LIMIT[precision]


@each_depth
def test_every_tile_gives_the_same_bits_and_with_d_of_two_those_of_the_plain_kernel(hopper, d):
    x, values = operands((3, 200, 136, d), 1000, Precision.FP16)
    made = []
    for way in (*WAYS, *MMA_TILES[1:2]) if d == 2 else WAYS:
        y = poisoned(1000, 600 * d, dtype=x.dtype)
        ks_matmul(hopper, x, values, y, way=way)
        made.append(y)

    assert all(torch.equal(made[0], y) for y in made)


@pytest.mark.parametrize("activation", [None, *Activation], ids=str)
@each_way
@each_depth
def test_the_epilogue_adds_bias_and_residual_and_applies_the_activation(hopper, way, d, activation):
    precision, pattern, rows = Precision.FP16, (2, 72, 64, d), 300
    x, values = operands(pattern, rows, precision)
    bias = torch.randn(KSPattern(*pattern).width_out, device="cuda")
    sums = product(x, values) + bias.double()
    for residual in (False, True):
        y = torch.randn(rows, len(bias), device="cuda").to(x.dtype)
        expected = activate(sums + y.double() if residual else sums, activation, 0.2)

        ks_matmul(hopper, x, values, y, Epilogue(bias, y if residual else None, activation, 0.2), way=way)

        assert relative_error(y, expected) < LIMIT[precision]


@each_way
@each_depth
def test_rows_past_the_count_do_not_matter_and_are_not_written(hopper, way, d):
    precision, pattern, rows = Precision.BF16, (2, 64, 80, d), 600
    given, values = operands(pattern, rows, precision)
    for used in (0, 1, 64, 321, rows):
        x = given.clone()
        x[used:] = torch.nan
        y = poisoned(rows, KSPattern(*pattern).width_out, dtype=x.dtype)

        ks_matmul(hopper, x, values, y, count=torch.tensor([used], dtype=torch.int32, device="cuda"), way=way)

        assert relative_error(y[:used], product(x[:used], values)) < LIMIT[precision]
        assert bool(y[used:].isnan().all())


@each_way
@each_depth
def test_what_is_not_a_number_stays_in_its_row_and_block_and_with_d_of_two_in_its_l(hopper, way, d):
    x, values = operands((2, 64, 80, d), 70, Precision.FP16)
    x[3, 0] = torch.nan
    expected = product(x, values)
    y = poisoned(*expected.shape, dtype=x.dtype)

    ks_matmul(hopper, x, values, y, way=way)

    others = expected.clone()
    others[3, : 64 * d] = 0
    assert relative_error(torch.where(others == 0, 0, y), others) < LIMIT[Precision.FP16]
    assert bool((y.isnan() >= expected.isnan()).all())
    assert d > 2 or torch.equal(y.isnan(), expected.isnan())
