"""fp32 and tf32, batch-size-last and batch-size-first with d = 1, run on the CPU: tests/kernels/simulated.py."""

import pytest
import torch

from lacuna_kernels import Precision
from lacuna_kernels.cuda.kronecker import tf32
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.way import PLAIN, Epilogue, Operands
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.kronecker_linear import KSPattern, ks_matmul
from tests.kernels.factors import H200, LIMIT, relative_error, turned
from tests.kernels.simulated import SimulatedDevice, guarded, tensor_map

some = pytest.mark.parametrize(
    "way",
    [way for n, way in enumerate(tf32.WAYS) if n % (3 if way.halves else 7) == 0],
    ids=lambda way: f"{way.precision} {way.name}",
)
halves = pytest.mark.parametrize("way", [way for way in tf32.WAYS if way.halves], ids=lambda way: way.name)


@pytest.fixture(autouse=True)
def simulated_copies(monkeypatch):
    monkeypatch.setattr(tf32, "tensor_map", tensor_map)


def multiply(folder, way, pattern, rows, seed, epilogue=PLAIN, count=None, scale=None):
    """Fresh random operands; return y by rows, around which memory stays as it was, and the exact sums."""
    generator = torch.Generator().manual_seed(seed)
    problem = Problem(pattern, rows, way.precision, way.layout)
    assert way.fits(problem, H200)
    x = torch.randn(rows, pattern.width_in, generator=generator)
    if scale is not None:
        x *= scale.view(-1, 1)
    values = torch.randn(pattern.values, generator=generator) * pattern.c**-0.5
    used = rows if count is None else count
    x[used:] = torch.nan
    shape = (rows, pattern.width_out) if way.layout is Layout.FIRST else (pattern.width_out, rows)
    y, memory = guarded(*shape, torch.float32)
    if epilogue.residual is not None:
        y.copy_(turned(epilogue.residual, way.layout))
        epilogue = Epilogue(epilogue.bias, y, epilogue.activation, epilogue.negative_slope)
    on_device = None if count is None else torch.tensor([count], dtype=torch.int32)
    scratch = torch.empty(way.scratch_bytes(problem), dtype=torch.uint8)
    device = SimulatedDevice(folder, 3, seed)
    way.launch(device, problem, way.pack(values), Operands(turned(x, way.layout), y, epilogue, on_device, scratch))
    outside = (len(memory) - y.numel()) // 2
    assert bool(memory[:outside].isnan().all() and memory[-outside:].isnan().all())
    return turned(y, way.layout), ks_matmul(x[:used].double(), values.double())


def patterns(way):
    """One tile and several, steps with and without a rest."""
    d = 1 if way.layout is Layout.FIRST else 3
    yield KSPattern(2, way.columns + 8 if way.columns % 32 == 0 else 40, 72, d), way.rows + 8
    yield KSPattern(1, 40, 44, d), 5
    yield KSPattern(1, min(way.columns, 64), 32, d), 2 * way.rows


@some
def test_a_factor_agrees_with_float64_and_writes_nothing_else(folder, way):
    for seed, (pattern, rows) in enumerate(patterns(way)):
        y, expected = multiply(folder, way, pattern, rows, seed)
        assert relative_error(y, expected) < LIMIT[way.precision]


def missing_tile(way):
    """A pattern and rows that no tile of the way fits."""
    return KSPattern(1, min(way.columns, 72), 40, 1 if way.layout is Layout.FIRST else 2), way.rows + 4


@some
def test_the_epilogue_is_applied_to_the_sums(folder, way):
    pattern, rows = missing_tile(way)
    generator = torch.Generator().manual_seed(0)
    bias, residual = (torch.randn(*size, pattern.width_out, generator=generator) for size in ((), (rows,)))
    for seed, (added, activation) in enumerate(((None, Activation.GELU), (residual, Activation.LEAKY_RELU))):
        y, sums = multiply(folder, way, pattern, rows, seed, Epilogue(bias, added, activation, 0.2))
        expected = sums + bias.double() + (0 if added is None else added.double())
        # activations are right to 3e-7 of their largest argument
        assert relative_error(y, activate(expected, activation, 0.2)) < 2 * LIMIT[way.precision]


@some
def test_rows_past_the_count_are_not_written(folder, way):
    pattern, rows = missing_tile(way)
    for count in (0, 1, rows - 1):
        y, sums = multiply(folder, way, pattern, rows, count, count=count)
        assert relative_error(y[:count], sums) < LIMIT[way.precision]
        assert bool(y[count:].isnan().all())


@halves
def test_rows_of_any_size_are_as_accurate(folder, way):
    rows = 61
    scale = 10.0 ** torch.arange(-15.0, 15.5, 0.5)
    y, expected = multiply(folder, way, KSPattern(1, 40, 48, 1), rows, 7, scale=scale)
    error = (y.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(error.max()) < 3 * LIMIT[Precision.FP32]  # the worst of 61 rows, each of few outputs
