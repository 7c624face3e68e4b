"""fp32 and tf32, batch-size-first with d > 1, by halves, run on the CPU: tests/kernels/simulated.py."""

import pytest
import torch

from lacuna_kernels.cuda.kronecker import halves
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.way import PLAIN, Epilogue, Operands
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.kronecker_linear import KSPattern, ks_matmul
from tests.kernels.factors import H200, LIMIT, relative_error
from tests.kernels.simulated import SimulatedDevice, guarded, tensor_map

some = pytest.mark.parametrize(
    "way",
    [way for n, way in enumerate(halves.WAYS) if n % (4 if n < len(halves.WAYS) // 2 else 8) == 0],
    ids=lambda way: f"{way.precision} {way.name}",
)


@pytest.fixture(autouse=True)
def simulated_copies(monkeypatch):
    monkeypatch.setattr(halves, "tensor_map", tensor_map)


def multiply(folder, way, pattern, rows, seed, epilogue=PLAIN, count=None):
    """Fresh random operands; return y, around which memory stays as it was, and the exact sums."""
    generator = torch.Generator().manual_seed(seed)
    problem = Problem(pattern, rows, way.precision)
    assert way.fits(problem, H200)
    x = torch.randn(rows, pattern.width_in, generator=generator)
    values = torch.randn(pattern.values, generator=generator) * pattern.c**-0.5
    used = rows if count is None else count
    x[used:] = torch.nan
    y, memory = guarded(rows, pattern.width_out, torch.float32)
    if epilogue.residual is not None:
        y.copy_(epilogue.residual)
        epilogue = Epilogue(epilogue.bias, y, epilogue.activation, epilogue.negative_slope)
    on_device = None if count is None else torch.tensor([count], dtype=torch.int32)
    way.launch(SimulatedDevice(folder, 2, seed), problem, way.pack(values), Operands(x, y, epilogue, on_device))
    outside = (len(memory) - y.numel()) // 2
    assert bool(memory[:outside].isnan().all() and memory[-outside:].isnan().all())
    return y, ks_matmul(x[:used].double(), values.double())


def patterns(way):
    """With all l in a tile, by vectors and not, and with more l and fewer; rows and columns that miss the tile."""
    for d in (way.run, way.run + 2, max(2, way.run - 1)):
        yield KSPattern(1, way.columns + 12, 40, d)
    yield KSPattern(2, 20, 16, way.run)
    yield KSPattern(2, 7, 5, way.run)


@some
def test_a_factor_agrees_with_float64_and_writes_nothing_else(folder, way):
    for seed, pattern in enumerate(patterns(way)):
        y, expected = multiply(folder, way, pattern, way.rows + 9, seed)
        assert relative_error(y, expected) < LIMIT[way.precision], pattern


@some
def test_the_epilogue_is_applied_to_the_sums(folder, way):
    pattern, rows = KSPattern(1, 20, 40, way.run), way.rows + 4
    generator = torch.Generator().manual_seed(0)
    bias, residual = (torch.randn(*size, pattern.width_out, generator=generator) for size in ((), (rows,)))
    for seed, (added, activation) in enumerate(((None, None), (None, Activation.GELU), (residual, Activation.RELU))):
        y, sums = multiply(folder, way, pattern, rows, seed, Epilogue(bias, added, activation, 0.2))
        expected = sums + bias.double() + (0 if added is None else added.double())
        # activations are right to 3e-7 of their largest argument
        assert relative_error(y, activate(expected, activation, 0.2)) < 2 * LIMIT[way.precision]


@some
def test_rows_past_the_count_are_not_written(folder, way):
    for count in (0, 1, way.rows + 3):
        y, sums = multiply(folder, way, KSPattern(1, 20, 24, way.run), way.rows + 4, count, count=count)
        assert relative_error(y[:count], sums) < LIMIT[way.precision]
        assert bool(y[count:].isnan().all())
