"""Few rows on a GPU, every variant, against sums in float64, and a chain in one cluster against factor after factor."""

import pytest
import torch
from torch import Tensor

from lacuna_kernels import Precision
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker.few_rows import CHAIN_WAYS, PRECISIONS, WAYS
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.tiles import MMA_TILES
from lacuna_kernels.cuda.kronecker.way import PLAIN, Epilogue, Operands, Way
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.ops import kronecker_linear as reference
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.kronecker_linear import KSPattern
from tests.kernels.factors import LIMIT, operands, relative_error

ROWS = [1, 8, 13, 40, 64, 130]
PATTERNS = [
    (64, 64, 64, 1),
    (1, 64, 64, 64),
    (1, 64, 256, 16),
    (3, 40, 72, 4),
    (2, 33, 65, 2),
    (5, 17, 19, 1),
    (1, 24, 18, 40),
    (1, 256, 1024, 2),
    (1, 1024, 512, 1),
    (200, 16, 16, 1),
]
CHAINS = [
    [(64, 64, 64, 1), (1, 64, 64, 64)],
    [(64, 64, 64, 1), (1, 64, 256, 16)],
    [(2, 48, 192, 1), (1, 192, 48, 2)],
    [(3, 20, 12, 2), (2, 18, 30, 2), (1, 40, 12, 6)],
    [(1, 32, 24, 1), (1, 40, 32, 1)],
    [(8, 16, 16, 1), (4, 16, 16, 2), (2, 16, 16, 4), (1, 16, 16, 8)],
]

pytestmark = pytest.mark.gpu


def poisoned(rows: int, width: int, like: Tensor) -> Tensor:
    return torch.full((rows, width), torch.nan, dtype=like.dtype, device="cuda")


def multiplied(
    device: Device, way: Way, x: Tensor, values: Tensor, epilogue: Epilogue = PLAIN, count: Tensor | None = None
) -> Tensor:
    pattern = KSPattern(*values.shape)
    problem = Problem(pattern, len(x), next(p for p in PRECISIONS if DTYPES[p] is x.dtype))
    if not way.fits(problem, device.limits):
        pytest.skip("too wide for a block's shared memory")
    y = poisoned(len(x), pattern.width_out, x)
    way.launch(device, problem, way.pack(values), Operands(x, y, epilogue, count))
    return y


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_a_factor_agrees_with_float64(hopper, way, precision, pattern):
    for rows in ROWS:
        x, values = operands(pattern, rows, precision)
        y = multiplied(hopper, way, x, values)
        assert relative_error(y, reference.ks_matmul(x.double(), values.double())) < LIMIT[precision], rows


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if min(p[1:3]) >= 16], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_a_factor_has_the_bits_that_it_has_for_many_rows(hopper, way, precision, pattern):
    x, values = operands(pattern, 100, precision)
    problem, plain = Problem(KSPattern(*pattern), 100, precision), MMA_TILES[0]
    expected = poisoned(100, problem.pattern.width_out, x)
    plain.launch(hopper, problem, plain.pack(values), Operands(x, expected))

    for first, rows in [(0, 1), (3, 40), (0, 100)]:
        y = multiplied(hopper, way, x[first : first + rows].clone(), values)
        assert torch.equal(y, expected[first : first + rows])


@pytest.mark.parametrize("activation", [None, *Activation], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_the_epilogue_adds_bias_and_residual_and_applies_the_activation(hopper, precision, activation):
    for pattern in [(2, 40, 24, 3), (16, 32, 32, 1)]:
        x, values = operands(pattern, 21, precision)
        width = KSPattern(*pattern).width_out
        bias, residual = torch.randn(width, device="cuda"), torch.randn(21, width, device="cuda").to(x.dtype)
        sums = reference.ks_matmul(x.double(), values.double()) + bias.double() + residual.double()
        for way in WAYS:
            y = multiplied(hopper, way, x, values, Epilogue(bias, residual, activation, 0.2))
            assert relative_error(y, activate(sums, activation, 0.2)) < LIMIT[precision], way


@pytest.mark.parametrize("used", [0, 1, 8, 17, 40, 70])
def test_rows_past_the_count_are_neither_read_nor_written(hopper, used):
    x, values = operands((4, 32, 32, 2), 40, Precision.FP16)
    x[used:] = torch.nan
    expected = reference.ks_matmul(x[:used].double(), values.double())
    for way in WAYS:
        y = multiplied(hopper, way, x, values, count=torch.tensor([used], dtype=torch.int32, device="cuda"))
        assert relative_error(y[:used], expected) < LIMIT[Precision.FP16], way
        assert bool(y[used:].isnan().all()), way


def test_operands_need_not_be_aligned(hopper):
    for pattern in [(4, 32, 32, 2), (4, 32, 32, 1)]:
        x, values = operands(pattern, 20, Precision.FP16)
        whole = torch.zeros(x.numel() + 1, dtype=x.dtype, device="cuda")
        whole[1:] = x.flatten()
        for way in WAYS:
            y = multiplied(hopper, way, whole[1:].view_as(x), values)
            assert relative_error(y, reference.ks_matmul(x.double(), values.double())) < LIMIT[Precision.FP16]


@pytest.mark.parametrize("chain", CHAINS, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("way", CHAIN_WAYS, ids=lambda way: way.name)
def test_a_chain_has_the_bits_of_factor_after_factor(hopper, way, precision, chain):
    factors = [operands(pattern, 0, precision)[1] for pattern in chain]
    bias = torch.randn(KSPattern(*chain[-1]).width_out, device="cuda")
    packed = way.pack(factors)
    for rows in ROWS:
        x, _ = operands(chain[0], rows, precision)
        residual = torch.randn(rows, len(bias), device="cuda").to(x.dtype)
        epilogue = Epilogue(bias, residual, Activation.RELU)
        problems = [Problem(KSPattern(*pattern), rows, precision) for pattern in chain]
        assert way.fits(problems, hopper.limits)
        y = poisoned(rows, len(bias), x)
        way.launch(hopper, problems, packed, Operands(x, y, epilogue))

        expected = x
        for values in factors[:-1]:
            expected = multiplied(hopper, WAYS[0], expected, values)
        expected = multiplied(hopper, WAYS[0], expected, factors[-1], epilogue)
        assert torch.equal(y, expected), rows


@pytest.mark.parametrize("chain", CHAINS, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("way", CHAIN_WAYS, ids=lambda way: way.name)
def test_a_chain_from_and_to_fp32_rounds_as_if_it_were_converted_before_and_after(hopper, way, precision, chain):
    packed = way.pack([operands(pattern, 0, precision)[1] for pattern in chain])
    for rows in ROWS:
        problems = [Problem(KSPattern(*pattern), rows, precision) for pattern in chain]
        wide = torch.randn(rows, problems[0].pattern.width_in, device="cuda")
        narrow, made = wide.to(problems[0].dtype), []
        for x in (wide, narrow):
            for like in (wide, narrow):
                y = poisoned(rows, problems[-1].pattern.width_out, like)
                way.launch(hopper, problems, packed, Operands(x, y))
                made.append(y.float())

        assert not bool(made[0].isnan().any())
        assert all(torch.equal(made[0], y) for y in made)


@pytest.mark.parametrize("used", [0, 1, 8, 17, 30])
def test_a_chain_neither_reads_nor_writes_rows_past_the_count(hopper, used):
    chain = CHAINS[0]
    factors = [operands(pattern, 0, Precision.BF16)[1] for pattern in chain]
    x, _ = operands(chain[0], 30, Precision.BF16)
    x[used:] = torch.nan
    problems = [Problem(KSPattern(*pattern), 30, Precision.BF16) for pattern in chain]
    count = torch.tensor([used], dtype=torch.int32, device="cuda")
    for way in CHAIN_WAYS:
        y = poisoned(30, 4096, x)
        way.launch(hopper, problems, way.pack(factors), Operands(x, y, count=count))
        assert not bool(y[:used].isnan().any())
        assert bool(y[used:].isnan().all())


def test_launches_one_after_the_other_see_what_the_one_before_wrote(hopper):
    chain, way = CHAINS[0], CHAIN_WAYS[0]
    factors = [operands(pattern, 0, Precision.BF16)[1] for pattern in chain]
    packed = way.pack(factors)
    problems = [Problem(KSPattern(*pattern), 24, Precision.BF16) for pattern in chain]
    x, _ = operands(chain[0], 24, Precision.BF16)
    expected = x
    for _ in range(6):
        y = poisoned(24, 4096, x)
        way.launch(hopper, problems, packed, Operands(expected, y))
        torch.cuda.synchronize()
        expected = y
    buffers = [x.clone(), poisoned(24, 4096, x)]
    for i in range(6):
        way.launch(hopper, problems, packed, Operands(buffers[i % 2], buffers[1 - i % 2]))

    assert torch.equal(buffers[0], expected)
