"""fp32 and tf32 on the tensor cores, beyond what holds for every way (test_cuda_kronecker.py)."""

import pytest
import torch
from torch import Tensor

from lacuna_kernels import Precision
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker import halves
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.tf32 import WAYS, Tf32
from lacuna_kernels.cuda.kronecker.turned import Turned
from lacuna_kernels.cuda.kronecker.way import Epilogue, Operands, Sums
from lacuna_kernels.cuda.kronecker_linear import ks_matmul
from lacuna_kernels.ops import kronecker_linear as reference
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.kronecker_linear import KSPattern
from tests.kernels.factors import LIMIT, relative_error

ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.precision} {way.name}")

pytestmark = pytest.mark.gpu


class Case:
    """Fresh random operands for a way, y poisoned, and what y must be."""

    def __init__(self, way: Tf32, pattern: tuple[int, int, int, int], rows: int) -> None:
        a, b, c, d = pattern if way.layout is Layout.LAST else (pattern[0] * pattern[3], *pattern[1:3], 1)
        self.way, self.problem = way, Problem(KSPattern(a, b, c, d), rows, way.precision, way.layout)
        self.x = torch.randn(rows, a * c * d, device="cuda")
        self.values = torch.randn(a, b, c, d, device="cuda") * c**-0.5
        self.expected = reference.ks_matmul(self.x.double(), self.values.double())

    def run(self, device: Device, epilogue: Epilogue | None = None, count: Tensor | None = None) -> Tensor:
        """y, one row a vector."""
        assert self.way.fits(self.problem, device.limits)
        last = self.way.layout is Layout.LAST
        shape = self.expected.shape[::-1] if last else self.expected.shape
        y = torch.full(shape, torch.nan, device="cuda")
        scratch = torch.empty(self.way.scratch_bytes(self.problem), dtype=torch.uint8, device="cuda")
        operands = Operands(self.x.T.contiguous() if last else self.x, y, epilogue or Epilogue(), count, scratch)
        self.way.launch(device, self.problem, self.way.pack(self.values), operands)
        return y.T if last else y


@ways
@pytest.mark.parametrize("rows", [0, 1, 4, 128, 701])
def test_blocks_that_miss_the_tile_in_every_direction(hopper, way, rows):
    patterns = [(2, 40, 72, 3), (1, 31, 100, 20), (3, 48, 8, 2), (2, 8, 20, 1)]
    if way.columns % 32 == 0:
        patterns += [(2, way.columns + 4, 48, 1), (1, 2 * way.columns + 3, 36, 2)]
    for pattern in patterns:
        case = Case(way, pattern, rows)

        y = case.run(hopper)

        few = 1.5 if y.numel() < 100 else 1.0  # errors of a few sums do not average out
        assert not rows or relative_error(y, case.expected) < few * LIMIT[way.precision], pattern


@ways
def test_a_long_sum_keeps_its_accuracy(hopper, way):
    case = Case(way, (1, 48, 1024, 2), 1000)

    assert relative_error(case.run(hopper), case.expected) < LIMIT[way.precision]


@ways
def test_sums_of_one_sign_do_not_shrink(hopper, way):
    case = Case(way, (1, 48, 1024, 1), 256)
    case.x.abs_()
    case.values.abs_()
    case.expected = reference.ks_matmul(case.x.double(), case.values.double())

    assert relative_error(case.run(hopper), case.expected) < LIMIT[way.precision]


@ways
def test_many_tiles_a_block_agree_with_float64(hopper, way):
    case = Case(way, (8, way.columns, 64, 4), 9000)

    for _ in range(5):
        assert relative_error(case.run(hopper), case.expected) < LIMIT[way.precision]


@ways
def test_no_copy_overtakes_loads_that_wait_for_the_stores_of_a_ragged_tile(hopper, way):
    case = Case(way, (192, 384 if way.columns % 32 == 0 else way.columns, 384, 1), 910)
    first = case.run(hopper)

    assert relative_error(first, case.expected) < LIMIT[way.precision]
    for _ in range(20):
        assert torch.equal(case.run(hopper), first)


@ways
@pytest.mark.parametrize("used", [0, 1, 191, 431])
def test_rows_past_the_count_are_not_written_whatever_the_epilogue(hopper, way, used):
    case = Case(way, (2, 44, 40, 1), 700)
    features = case.expected.shape[1]
    bias, residual = torch.randn(features, device="cuda"), torch.randn(700, features, device="cuda")
    added = residual.T.contiguous() if way.layout is Layout.LAST else residual
    count = torch.tensor([used], dtype=torch.int32, device="cuda")

    y = case.run(hopper, Epilogue(bias, added, Activation.SILU), count)

    sums = (case.expected + bias.double() + residual.double())[:used]
    assert not used or relative_error(y[:used], activate(sums, Activation.SILU, 0.0)) < LIMIT[way.precision]
    assert bool(y[used:].isnan().all())


@pytest.mark.parametrize("layout", Layout, ids=str)
@pytest.mark.parametrize("sums", [Sums.SPLIT, Sums.HALVES, Sums.TF32], ids=str)
def test_every_tile_gives_the_same_bits_and_a_row_does_not_depend_on_others(hopper, sums, layout):
    problem = Problem(KSPattern(3, 40, 200, 2), 516, Precision.FP32, layout)
    fitting = [way for way in WAYS if way.sums(problem) is sums and way.layout is layout]
    case = Case(fitting[0], (3, 40, 200, 2), 516)
    few = Case(fitting[0], (3, 40, 200, 2), 4)
    few.values, few.x = case.values, case.x[100:104]
    expected = case.run(hopper)

    for way in fitting:
        case.way = few.way = way
        assert torch.equal(case.run(hopper), expected), way.name
        assert torch.equal(few.run(hopper), expected[100:104]), way.name


def test_infinities_and_nan_stay_visible(hopper):
    for way in WAYS:
        case = Case(way, (1, 48, 32, 1), 128)
        case.x[3, 5], case.x[7, 9] = torch.inf, torch.nan

        y = case.run(hopper)

        assert not y[[3, 7]].isfinite().any()
        assert bool(y[[0, 1, 2, 4, 8, 127]].isfinite().all())


@pytest.mark.parametrize("way", [w for w in WAYS if w.halves and w.layout is Layout.FIRST], ids=lambda way: way.name)
def test_halves_add_up_bit_for_bit_as_the_kernel_for_any_d(hopper, way):
    x, values = torch.randn(333, 2 * 200 * 4, device="cuda"), torch.randn(2, 96, 200, 4, device="cuda")
    y, plain = (torch.full((333, 2 * 96 * 4), torch.nan, device="cuda") for _ in range(2))
    like = next(other for other in halves.WAYS if other.precision is Precision.FP32)

    ks_matmul(hopper, x, values, y, precision=Precision.FP32, way=Turned(way))
    ks_matmul(hopper, x, values, plain, precision=Precision.FP32, way=like)

    assert torch.equal(y, plain)
