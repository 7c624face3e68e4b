"""Two Kronecker-sparse factors in one kernel, against float64 and against one launch a factor."""

import pytest
import torch
from torch import Tensor

from lacuna_kernels import Precision
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker.chain import CHAIN_WAYS, Team
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.way import Epilogue, Operands
from lacuna_kernels.cuda.kronecker_linear import ks_matmul
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.ops import kronecker_linear as reference
from lacuna_kernels.ops.activation import Activation, activate
from tests.kernels.factors import LIMIT, relative_error

PRECISIONS = [Precision.FP16, Precision.BF16]
ROWS = [1, 31, 33, 1000, 5000]

pytestmark = pytest.mark.gpu


def operands(way: Team, rows: int, precision: Precision) -> tuple[Tensor, list[Tensor]]:
    """Fresh random rows, and factors scaled so that y is of unit size."""
    dtype = DTYPES[precision]
    factors = [(torch.randn(p.values, device="cuda") * p.c**-0.5).to(dtype) for p in (way.first, way.second)]
    return torch.randn(rows, way.first.width_in, device="cuda").to(dtype), factors


def product(x: Tensor, factors: list[Tensor]) -> Tensor:
    """In float64, rounded to x's type between the factors."""
    between = reference.ks_matmul(x.double(), factors[0].double()).to(x.dtype)
    return reference.ks_matmul(between.double(), factors[1].double())


def launch(
    device: Device,
    way: Team,
    x: Tensor,
    factors: list[Tensor],
    y: Tensor,
    epilogue: Epilogue | None = None,
    count: Tensor | None = None,
) -> None:
    precision = Precision.FP16 if x.dtype is torch.float16 else Precision.BF16
    problems = [Problem(pattern, len(x), precision) for pattern in (way.first, way.second)]
    assert way.fits(problems, device.limits)
    way.launch(device, problems, way.pack(factors), Operands(x, y, epilogue or Epilogue(), count))


def poisoned(way: Team, x: Tensor) -> Tensor:
    return torch.full((len(x), way.second.width_out), torch.nan, dtype=x.dtype, device="cuda")


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("way", CHAIN_WAYS, ids=lambda way: way.name)
def test_a_chain_agrees_with_float64_and_has_the_bits_of_one_launch_a_factor(hopper, way, precision):
    for rows in ROWS:
        x, factors = operands(way, rows, precision)
        y, alone = poisoned(way, x), poisoned(way, x)
        between = torch.empty(rows, way.first.width_out, dtype=x.dtype, device="cuda")

        launch(hopper, way, x, factors, y)
        ks_matmul(hopper, x, factors[0], between)
        ks_matmul(hopper, between, factors[1], alone)

        assert relative_error(y, product(x, factors)) < LIMIT[precision]
        assert torch.equal(y, alone)


@pytest.mark.parametrize("activation", [None, *Activation], ids=str)
@pytest.mark.parametrize("way", CHAIN_WAYS, ids=lambda way: way.name)
def test_the_epilogue_belongs_to_the_last_factor(hopper, way, activation):
    x, factors = operands(way, 72, Precision.BF16)
    width = way.second.width_out
    bias, residual = torch.randn(width, device="cuda"), torch.randn(72, width, device="cuda").to(x.dtype)
    sums = product(x, factors) + bias.double()
    for added in (None, residual):
        y = poisoned(way, x)
        launch(hopper, way, x, factors, y, Epilogue(bias, added, activation, 0.2))
        expected = activate(sums if added is None else sums + added.double(), activation, 0.2)
        assert relative_error(y, expected) < LIMIT[Precision.BF16]


@pytest.mark.parametrize("way", CHAIN_WAYS, ids=lambda way: way.name)
def test_the_residual_may_be_what_is_written(hopper, way):
    x, factors = operands(way, 40, Precision.FP16)
    y = torch.randn(40, way.second.width_out, device="cuda").half()
    expected = product(x, factors) + y.double()
    launch(hopper, way, x, factors, y, Epilogue(residual=y))
    assert relative_error(y, expected) < LIMIT[Precision.FP16]


@pytest.mark.parametrize("way", CHAIN_WAYS, ids=lambda way: way.name)
def test_rows_past_the_count_are_left_alone(hopper, way):
    x, factors = operands(way, 600, Precision.BF16)
    for used in (0, 1, 32, 597):
        x[used:] = torch.nan
        y = torch.full((600, way.second.width_out), 7.0, dtype=x.dtype, device="cuda")
        launch(hopper, way, x, factors, y, count=torch.tensor([used], dtype=torch.int32, device="cuda"))
        assert (y[used:] == 7).all()
        if used:
            assert relative_error(y[:used], product(x[:used], factors)) < LIMIT[Precision.BF16]
        x, _ = operands(way, 600, Precision.BF16)


@pytest.mark.parametrize("way", CHAIN_WAYS, ids=lambda way: way.name)
def test_a_row_has_the_same_bits_in_any_batch(hopper, way):
    x, factors = operands(way, 3000, Precision.BF16)
    whole, part = poisoned(way, x), poisoned(way, x[:77])
    launch(hopper, way, x, factors, whole)
    launch(hopper, way, x[1000:1077].clone(), factors, part)
    assert torch.equal(whole[1000:1077], part)
