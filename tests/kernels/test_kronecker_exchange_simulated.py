"""Factors with d > 1 by teams of blocks, run on the CPU: tests/kernels/simulated.py."""

from pathlib import Path

import pytest
import torch

from lacuna_kernels import Precision
from lacuna_kernels.cuda.kronecker import boxes, exchange, exchange_halves
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.team_schedule import schedule_of
from lacuna_kernels.cuda.kronecker.teams import ROWS
from lacuna_kernels.cuda.kronecker.way import PLAIN, Epilogue, Operands
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.kronecker_linear import KSPattern, ks_matmul
from tests.kernels.factors import H200, LIMIT, relative_error
from tests.kernels.simulated import SimulatedDevice, guarded, tensor_map


def one_of_each(ways):
    """One for every depth, share of columns and, of halves, k of a stage: each takes seconds. GPU tests have all."""
    kinds = {(way.teams.depth, way.teams.shares, way.teams.halves and way.teams.steps): way for way in ways}
    return list(kinds.values())


SIXTEEN = [
    pytest.param(way, (Precision.FP16, Precision.BF16)[n % 2], id=way.name)
    for n, way in enumerate(one_of_each(exchange.WAYS))
]
HALVES = [
    pytest.param(way, way.precision, id=f"{way.name} {way.precision}")
    for n, precision in enumerate((Precision.FP32, Precision.TF32))
    for way in one_of_each(way for way in exchange_halves.WAYS if way.precision is precision)[n :: 3 + n]
]
WAYS = SIXTEEN + HALVES


@pytest.fixture(autouse=True)
def simulated_copies(monkeypatch):
    monkeypatch.setattr(boxes, "tensor_map", tensor_map)


def multiply(folder: Path, way, problem, seed, epilogue=PLAIN, count=None, multiprocessors=24):
    """Fresh random operands; return y, around which memory stays as it was, and the exact sums."""
    pattern, rows, dtype = problem.pattern, problem.rows, DTYPES[problem.precision]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, pattern.width_in, generator=generator).to(dtype)
    values = (torch.randn(pattern.values, generator=generator) * pattern.c**-0.5).to(dtype)
    y, memory = guarded(rows, pattern.width_out, dtype)
    used = rows if count is None else count
    x[used:] = torch.nan
    if epilogue.residual is not None:
        y.copy_(epilogue.residual)
        epilogue = Epilogue(epilogue.bias, y, epilogue.activation, epilogue.negative_slope)
    on_device = None if count is None else torch.tensor([count], dtype=torch.int32)
    device = SimulatedDevice(folder, multiprocessors, seed)
    way.launch(device, problem, way.pack(values), Operands(x, y, epilogue, on_device))
    outside = (len(memory) - y.numel()) // 2
    assert bool(memory[:outside].isnan().all() and memory[-outside:].isnan().all())
    return y, ks_matmul(x[:used].double(), values.double())


def least(b, way):
    """At least so many j, as many as are written together."""
    return -(-b // way.teams.columns_together) * way.teams.columns_together


def shapes(way):
    """Several passes and a rest in both sides; rows that miss the tile; a rest of l; weights that stream."""
    d = way.teams.depth
    if way.teams.halves:
        yield (1, 200, 40, d), ROWS + 1
        yield (3, least(75, way), 144 if way.teams.whole else 13, d if way.teams.whole else d + 4), 5
    else:
        yield (1, 200, 128, d), ROWS + 1
        yield (3, least(65, way), 144, d if way.teams.whole else d + 8), 5
    yield (1, 256, 384, d), 3


@pytest.mark.parametrize("way, precision", WAYS)
def test_a_factor_agrees_with_float64_and_writes_nothing_else(folder, way, precision):
    for seed, (pattern, rows) in enumerate(shapes(way)):
        problem = Problem(KSPattern(*pattern), rows, precision)
        assert way.fits(problem, H200)
        y, expected = multiply(folder, way, problem, seed)
        assert relative_error(y, expected) < LIMIT[precision]


@pytest.mark.parametrize("way, precision", WAYS[::2])
def test_the_epilogue_and_the_count(folder, way, precision):
    rows, pattern = ROWS + 3, KSPattern(1, least(75 if way.teams.halves else 65, way), 128, way.teams.depth)
    problem = Problem(pattern, rows, precision)
    bias, residual = torch.randn(pattern.width_out), torch.randn(rows, pattern.width_out).to(DTYPES[precision])
    for seed, (added, activation) in enumerate(((None, Activation.GELU), (residual, Activation.LEAKY_RELU))):
        y, sums = multiply(folder, way, problem, seed, Epilogue(bias, added, activation, 0.2))
        expected = sums + bias.double() + (0 if added is None else added.double())
        assert relative_error(y, activate(expected, activation, 0.2)) < 1.2 * LIMIT[precision]
    for count in (0, rows - 4):
        y, sums = multiply(folder, way, problem, count, count=count)
        assert relative_error(y[:count], sums) < LIMIT[precision]
        assert bool(y[count:].isnan().all())


@pytest.mark.parametrize("way, precision", WAYS[1::2])
def test_teams_share_many_tiles_whatever_comes_first(folder, way, precision):
    pattern = KSPattern(2, 64, 128, way.teams.depth)
    problem = Problem(pattern, 5 * ROWS, precision)
    for seed in range(2):
        y, expected = multiply(folder, way, problem, seed, multiprocessors=5 * way.teams.blocks)
        assert relative_error(y, expected) < LIMIT[precision]


@pytest.mark.parametrize("way, precision", WAYS[::2])
def test_a_count_of_fewer_tiles_than_a_team_steps_over(folder, way, precision):
    pattern = KSPattern(5, 64, 64, way.teams.depth)
    problem = Problem(pattern, 9 * ROWS, precision)
    for count in (1, ROWS + 6):
        y, expected = multiply(folder, way, problem, count, count=count, multiprocessors=5 * way.teams.blocks)
        assert relative_error(y[:count], expected) < LIMIT[precision]
        assert bool(y[count:].isnan().all())


PARTIAL = [way for way in WAYS if not way.values[0].teams.whole][::3]


@pytest.mark.parametrize("way, precision", PARTIAL)
def test_all_teams_work_while_weights_stream(folder, way, precision):
    teams, rows = way.teams, 3 * ROWS + 5
    pattern, multiprocessors = KSPattern(1, 328, 192, 2 * teams.depth), {2: 10, 4: 32, 8: 48}[teams.blocks]
    problem = Problem(pattern, rows, precision)
    schedule = schedule_of(teams, pattern, rows, multiprocessors)
    assert schedule is not None
    assert (schedule.teams, schedule.together) == (5, 2)
    for count in (rows, ROWS + 6):
        y, expected = multiply(folder, way, problem, count, count=count, multiprocessors=multiprocessors)
        assert relative_error(y[:count], expected) < LIMIT[precision]
        assert bool(y[count:].isnan().all())


@pytest.mark.parametrize("way, precision", HALVES[::2])
def test_rows_and_columns_of_any_size_are_as_accurate(folder, way, precision):
    d, rows = way.teams.depth, 61
    pattern = KSPattern(max(1, 16 // d), least(61, way), 40, d)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(rows, pattern.width_in, generator=generator) * 10.0 ** torch.linspace(-15, 15, rows).view(-1, 1)
    sizes = 10.0 ** torch.linspace(15, -15, pattern.b)
    values = torch.randn(pattern.values, generator=generator) * sizes.view(1, -1, 1, 1)
    y, _ = guarded(rows, pattern.width_out, torch.float32)
    way.launch(SimulatedDevice(folder, 24, 7), Problem(pattern, rows, precision), way.pack(values), Operands(x, y))
    expected = ks_matmul(x.double(), values.double()).view(rows, pattern.a, pattern.b, d)
    error = (y.double().view_as(expected) - expected).norm(dim=(1, 3)) / expected.norm(dim=(1, 3))
    assert float(error.max()) < 3 * LIMIT[precision]
