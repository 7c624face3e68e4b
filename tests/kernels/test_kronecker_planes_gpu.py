"""Factors with d > 1 by planes, on a Hopper GPU: all shapes of block, tile and rest that the kernel tells apart."""

import pytest
import torch

from lacuna_kernels import Precision
from lacuna_kernels.cuda.kronecker.planes import WAYS, Planes
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.tiles import MMA_TILES
from lacuna_kernels.cuda.kronecker.way import Epilogue
from lacuna_kernels.cuda.kronecker_linear import ks_matmul
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.kronecker_linear import KSPattern
from tests.kernels.factors import H200, LIMIT, operands, poisoned, product, relative_error

SIDES = [(48, 48), (64, 64), (16, 16), (80, 208), (200, 48), (96, 112), (128, 64)]
"""b and c: weights that stay and weights that stream, one pass over x and several, with and without a rest."""
PRECISIONS = [Precision.FP16, Precision.BF16]

pytestmark = pytest.mark.gpu


def depths(way: Planes) -> list[int]:
    return [way.depth] if way.whole else [24, 48]


def fits(way: Planes, pattern: tuple[int, ...]) -> bool:
    return way.fits(Problem(KSPattern(*pattern), 1000, Precision.FP16), H200)


CASES = [(way, pattern) for way in WAYS for d in depths(way) for b, c in SIDES if fits(way, pattern := (2, b, c, d))]
MANY_CASES = [
    (way, pattern)
    for way in WAYS
    for a, b, c in ((3, 48, 48), (5, 64, 80), (100, 48, 48))
    if fits(way, pattern := (a, b, c, depths(way)[-1]))
]


@pytest.mark.parametrize(("way", "pattern"), CASES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_a_factor_agrees_with_float64_and_bit_for_bit_with_the_plain_kernel(hopper, precision, way, pattern):
    for rows in (1, way.rows, 5 * way.rows + 3):
        x, values = operands(pattern, rows, precision)
        expected = product(x, values)
        y, plain = (poisoned(*expected.shape, dtype=x.dtype) for _ in range(2))

        ks_matmul(hopper, x, values, y, way=way)
        ks_matmul(hopper, x, values, plain, way=MMA_TILES[1])

        assert relative_error(y, expected) < LIMIT[precision]
        assert torch.equal(y, plain)


@pytest.mark.parametrize(("way", "pattern"), MANY_CASES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_many_rows_and_chunks_are_shared_among_all_blocks(hopper, precision, way, pattern):
    rows = 9001
    x, values = operands(pattern, rows, precision)
    y = poisoned(rows, KSPattern(*pattern).width_out, dtype=x.dtype)

    ks_matmul(hopper, x, values, y, way=way)

    for part in (slice(0, 300), slice(4400, 4700), slice(rows - 300, rows)):
        assert relative_error(y[part], product(x[part], values)) < LIMIT[precision]
    assert not bool(y.isnan().any())


@pytest.mark.parametrize("activation", [None, *Activation], ids=str)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_the_epilogue_adds_bias_and_residual_and_applies_the_activation(hopper, way, activation):
    for d in depths(way):
        pattern, rows = (2, 48, 48, d), way.rows + 5
        x, values = operands(pattern, rows, Precision.FP16)
        bias = torch.randn(KSPattern(*pattern).width_out, device="cuda")
        y = torch.randn(rows, len(bias), device="cuda").half()
        expected = activate(product(x, values) + bias.double() + y.double(), activation, 0.2)

        ks_matmul(hopper, x, values, y, Epilogue(bias, y, activation, 0.2), way=way)

        assert relative_error(y, expected) < LIMIT[Precision.FP16]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_rows_past_the_count_do_not_matter_and_are_not_written(hopper, way):
    for d in depths(way):
        pattern, rows = (2, 64, 48, d), 3 * way.rows
        given, values = operands(pattern, rows, Precision.BF16)
        for used in (0, 1, way.rows, 2 * way.rows + 1, rows):
            x = given.clone()
            x[used:] = torch.nan
            y = poisoned(rows, KSPattern(*pattern).width_out, dtype=x.dtype)

            ks_matmul(hopper, x, values, y, count=torch.tensor([used], dtype=torch.int32, device="cuda"), way=way)

            assert relative_error(y[:used], product(x[:used], values)) < LIMIT[Precision.BF16]
            assert bool(y[used:].isnan().all())


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_what_is_not_a_number_stays_in_its_row_and_block(hopper, way):
    for d in depths(way):
        pattern = (2, 48, 40 if way.depth == 16 else 48, d)
        x, values = operands(pattern, way.rows + 1, Precision.FP16)
        x[3, 0] = torch.nan
        y = poisoned(len(x), KSPattern(*pattern).width_out, dtype=x.dtype)

        ks_matmul(hopper, x, values, y, way=way)

        assert torch.equal(y.isnan(), product(x, values).isnan())
