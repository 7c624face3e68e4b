"""Turning rows so that d becomes 1, and back, run on the CPU: tests/kernels/simulated.py."""

import pytest
import torch

from lacuna_kernels import Precision
from lacuna_kernels.cuda.activation import ACTIVATION_CODES
from lacuna_kernels.cuda.kronecker.choose import INNER
from lacuna_kernels.cuda.kronecker.turned import Part, Turned
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.ops.activation import Activation, activate
from tests.kernels.simulated import SimulatedDevice, guarded

ROWS, FIRST, A = 5, 2, 3
"""Of the part of a batch, where it begins, and blocks of a row."""
SIDES = [(16, 8), (24, 3), (40, 12), (1032, 64), (512, 48), (8, 2), (72, 6), (2048, 4)]
"""Of one matrix: [length, d]; some are turned several at once, some in pieces."""
BLOCK = (256, 1, 1)


def kernels(folder, precision):
    """Both turns."""
    turns = next(turns for inner in INNER if (turns := Turned(inner).variants(precision)))
    device = SimulatedDevice(folder, 1, 0)
    return [device.kernel(variant) for variant in turns]


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16, Precision.FP32])
@pytest.mark.parametrize("length, d", SIDES)
def test_rows_are_turned_and_what_is_past_the_count_is_left(folder, precision, length, d):
    turn_in, _ = kernels(folder, precision)
    dtype, part = DTYPES[precision], Part.of(length, d, DTYPES[precision].itemsize)
    x = torch.randn(FIRST + ROWS, A * length * d).to(dtype)
    x[FIRST + ROWS - 1] = torch.nan
    t, memory = guarded(ROWS, A * length * d, dtype)
    count, used = torch.tensor([FIRST + ROWS - 1], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)

    grid = (part.blocks(ROWS * A), 1, 1)
    turn_in(grid, BLOCK, x, t, count, used, FIRST, ROWS, A, length, d, part.group, part.chunk)

    expected = x[FIRST:].view(ROWS, A, length, d).transpose(2, 3).reshape(ROWS, -1)
    assert torch.equal(t[:-1], expected[:-1])
    assert used.item() == ROWS - 1
    assert int(memory.isnan().sum()) == len(memory) - (ROWS - 1) * A * length * d


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16, Precision.FP32])
@pytest.mark.parametrize("length, d", SIDES)
def test_rows_are_turned_back_and_finished(folder, precision, length, d):
    _, turn_out = kernels(folder, precision)
    dtype, part = DTYPES[precision], Part.of(length, d, DTYPES[precision].itemsize)
    t = torch.randn(ROWS, A * length * d).to(dtype)
    bias, residual = torch.randn(A * length * d), torch.randn(FIRST + ROWS, A * length * d).to(dtype)
    grid = (part.blocks(ROWS * A), 1, 1)
    for added, also, activation in ((None, None, None), (bias, residual, Activation.RELU)):
        y, memory = guarded(FIRST + ROWS, A * length * d, dtype)
        place = (FIRST, ROWS, A, length, d, part.group, part.chunk)
        turn_out(grid, BLOCK, t, added, also, y, None, *place, ACTIVATION_CODES[activation], 0.0)

        expected = t.view(ROWS, A, d, length).transpose(2, 3).reshape(ROWS, -1).float()
        if added is not None:
            expected = activate(expected + added + residual[FIRST:].float(), activation, 0.0)
        assert torch.equal(y[FIRST:], expected.to(dtype))
        assert int(memory.isnan().sum()) == len(memory) - ROWS * A * length * d
