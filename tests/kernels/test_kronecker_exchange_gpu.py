"""Factors with d > 1 by teams of blocks, on a Hopper GPU: all shapes of team, tile and rest that the kernels know."""

import pytest
import torch

from lacuna_kernels import Precision
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker import exchange, exchange_halves, halves
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.teams import ROWS
from lacuna_kernels.cuda.kronecker.tiles import MMA_TILES
from lacuna_kernels.cuda.kronecker.way import Epilogue, Way
from lacuna_kernels.cuda.kronecker_linear import ks_matmul
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.kronecker_linear import KSPattern
from tests.kernels.factors import LIMIT, operands, poisoned, product, relative_error

SIDES = [(64, 64), (128, 128), (200, 80), (96, 384), (328, 112), (256, 256), (75, 72), (40, 13)]
"""b and c: weights that stay and weights that stream, one pass over x and several, with a rest and without; odd."""
CASES = [
    pytest.param(way, precision, id=f"{way.name} {precision}")
    for way in (*exchange.WAYS, *exchange_halves.WAYS)
    for precision in Precision
    if way.variants(precision)
]
each_case = pytest.mark.parametrize("way, precision", CASES)

pytestmark = pytest.mark.gpu


def depths(way: exchange.Exchange | exchange_halves.ExchangeHalves) -> list[int]:
    depth = way.teams.depth
    return [depth] if way.teams.whole else [depth, depth + (4 if way.teams.halves else 8), 4 * depth]


def fits(way: Way, device: Device, pattern: tuple[int, ...], rows: int, precision: Precision) -> bool:
    return way.fits(Problem(KSPattern(*pattern), rows, precision), device.limits)


def another(way: Way, device: Device, pattern: tuple[int, ...], rows: int, precision: Precision) -> Way:
    """Another way that adds up alike: without teams if there is one, else of other teams."""
    problem = Problem(KSPattern(*pattern), rows, precision)
    others = (other for other in (MMA_TILES[1], *halves.WAYS, *exchange_halves.WAYS) if other is not way)
    alike = (other for other in others if other.fits(problem, device.limits))
    return next(other for other in alike if other.sums(problem) is way.sums(problem))


@pytest.mark.parametrize("sides", SIDES, ids=str)
@each_case
def test_a_factor_agrees_with_float64_and_bit_for_bit_with_another_way(hopper, way, precision, sides):
    for d in depths(way):
        for rows in (1, ROWS, 5 * ROWS + 3):
            pattern = (2, *sides, d)
            if not fits(way, hopper, pattern, rows, precision):
                continue
            x, values = operands(pattern, rows, precision)
            expected = product(x, values)
            y, other = (poisoned(*expected.shape, dtype=x.dtype) for _ in range(2))

            ks_matmul(hopper, x, values, y, precision=precision, way=way)
            ks_matmul(hopper, x, values, other, precision=precision, way=another(way, hopper, pattern, rows, precision))

            assert relative_error(y, expected) < LIMIT[precision]
            assert torch.equal(y, other)


@each_case
def test_many_rows_and_chunks_are_shared_among_all_teams(hopper, way, precision):
    for a, b, c in ((3, 64, 64), (5, 128, 96), (40, 64, 128)):
        pattern, rows = (a, b, c, depths(way)[-1]), 9001
        if not fits(way, hopper, pattern, rows, precision):
            continue
        x, values = operands(pattern, rows, precision)
        y = poisoned(rows, KSPattern(*pattern).width_out, dtype=x.dtype)

        ks_matmul(hopper, x, values, y, precision=precision, way=way)

        for part in (slice(0, 300), slice(4400, 4700), slice(rows - 300, rows)):
            assert relative_error(y[part], product(x[part], values)) < LIMIT[precision]
        assert not bool(y.isnan().any())


@pytest.mark.parametrize("activation", [None, *Activation], ids=str)
@each_case
def test_the_epilogue_adds_bias_and_residual_and_applies_the_activation(hopper, way, precision, activation):
    for d in depths(way):
        pattern, rows = (2, 72, 64, d), ROWS + 5
        x, values = operands(pattern, rows, precision)
        bias = torch.randn(KSPattern(*pattern).width_out, device="cuda")
        sums = product(x, values) + bias.double()
        for residual in (False, True):
            y = torch.randn(rows, len(bias), device="cuda").to(x.dtype)
            expected = activate(sums + y.double() if residual else sums, activation, 0.2)

            ks_matmul(
                hopper,
                x,
                values,
                y,
                Epilogue(bias, y if residual else None, activation, 0.2),
                precision=precision,
                way=way,
            )

            assert relative_error(y, expected) < LIMIT[precision]


@each_case
def test_rows_past_the_count_do_not_matter_and_are_not_written(hopper, way, precision):
    for d in depths(way):
        pattern, rows = (2, 64, 80, d), 3 * ROWS
        given, values = operands(pattern, rows, precision)
        for used in (0, 1, ROWS, 2 * ROWS + 1, rows):
            x = given.clone()
            x[used:] = torch.nan
            y = poisoned(rows, KSPattern(*pattern).width_out, dtype=x.dtype)

            ks_matmul(
                hopper,
                x,
                values,
                y,
                count=torch.tensor([used], dtype=torch.int32, device="cuda"),
                precision=precision,
                way=way,
            )

            assert relative_error(y[:used], product(x[:used], values)) < LIMIT[precision]
            assert bool(y[used:].isnan().all())


@each_case
def test_what_is_not_a_number_stays_in_its_row_and_block(hopper, way, precision):
    for d in depths(way):
        pattern = (2, 64, 80, d)
        x, values = operands(pattern, ROWS + 1, precision)
        x[3, 0] = torch.nan
        expected = product(x, values)
        y = poisoned(*expected.shape, dtype=x.dtype)
        assert fits(way, hopper, pattern, len(x), precision)

        ks_matmul(hopper, x, values, y, precision=precision, way=way)

        assert torch.equal(y.isnan(), expected.isnan())
        assert relative_error(y.nan_to_num(), expected.nan_to_num()) < LIMIT[precision]
