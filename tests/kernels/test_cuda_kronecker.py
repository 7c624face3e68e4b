"""Kronecker-sparse factors on a GPU, every way that fits, against sums in float64 over the same rounded operands."""

import pytest
import torch

from lacuna_kernels import Precision
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker.choose import candidates, stages
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.way import Operands, Sums, Way
from lacuna_kernels.cuda.kronecker_linear import Chain, Epilogue, ks_matmul
from lacuna_kernels.ops import kronecker_linear as reference
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.kronecker_linear import KSPattern
from tests.kernels.factors import FMA_LIMIT, LIMIT, operands, poisoned, product, relative_error, turned

PRECISIONS, LAYOUTS = list(Precision), list(Layout)
ROWS = [0, 1, 3, 64, 1000]
PATTERNS = [
    (1, 1, 1, 1),
    (8, 2, 2, 1),
    (2, 2, 2, 64),
    (64, 64, 64, 1),
    (1, 48, 48, 128),
    (2, 192, 48, 16),
    (1, 64, 256, 8),
    (3, 40, 72, 4),
    (2, 33, 65, 2),
    (5, 17, 19, 1),
    (2, 35, 21, 3),
    (1, 20, 100, 12),
    (3, 31, 29, 17),
    (1, 24, 18, 40),
    (7, 3, 500, 1),
    (2, 300, 5, 6),
    (1, 128, 512, 32),
    (2, 256, 96, 24),
]

pytestmark = pytest.mark.gpu


def ways(device: Device, pattern: tuple[int, ...], rows: int, precision: Precision, layout: Layout) -> list[Way]:
    """Those for counted rows: cuBLAS has sums of its own."""
    return candidates(Problem(KSPattern(*pattern), rows, precision, layout, counted=True), device.limits)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_every_way_agrees_with_float64_and_gives_the_same_bits_as_the_others(device, precision, pattern, layout):
    for rows in ROWS:
        x, values = operands(pattern, rows, precision, layout)
        expected, first = product(x, values, layout), None
        for way in ways(device, pattern, rows, precision, layout):
            y = poisoned(*expected.shape, dtype=x.dtype)
            ks_matmul(device, x, values, y, layout=layout, precision=precision, way=way)
            problem = Problem(KSPattern(*pattern), rows, precision, layout)
            plain = precision is Precision.FP32 and way.sums(problem) is Sums.FMA
            limit = FMA_LIMIT if plain else LIMIT[precision]
            assert relative_error(y, expected) < limit, way
            first = y if first is None else first
            assert torch.equal(y, first), way


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("activation", [None, *Activation], ids=str)
@pytest.mark.parametrize("pattern", [(2, 32, 40, 8), (2, 9, 7, 3), (2, 16, 64, 1), (1, 128, 64, 16)], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_the_epilogue_adds_bias_and_residual_and_applies_the_activation(device, precision, pattern, activation, layout):
    x, values = operands(pattern, 72, precision, layout)
    width = KSPattern(*pattern).width_out
    bias, residual = torch.randn(width, device="cuda"), torch.randn(72, width, device="cuda").to(x.dtype)
    sums = product(turned(x, layout), values) + bias.double() + residual.double()
    expected, added = turned(activate(sums, activation, 0.2), layout), turned(residual, layout)

    for way in ways(device, pattern, 72, precision, layout):
        y = poisoned(*expected.shape, dtype=x.dtype)
        epilogue = Epilogue(bias, added, activation, 0.2)
        ks_matmul(device, x, values, y, epilogue, layout=layout, precision=precision, way=way)
        assert relative_error(y, expected) < LIMIT[precision], way


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_the_residual_may_be_the_output_itself(device, precision, layout):
    for pattern in [(2, 32, 32, 8), (4, 64, 64, 1)]:
        x, values = operands(pattern, 104, precision, layout)
        exact = product(x, values, layout)
        before = torch.randn(exact.shape, device="cuda").to(x.dtype)
        for way in ways(device, pattern, 104, precision, layout):
            y = before.clone()
            ks_matmul(device, x, values, y, Epilogue(residual=y), layout=layout, precision=precision, way=way)
            assert relative_error(y, exact + before.double()) < LIMIT[precision], way


@pytest.mark.parametrize("used", [0, 1, 63, 64, 200])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_rows_past_the_count_are_neither_read_nor_written(device, precision, layout, used):
    for pattern in [(2, 32, 32, 8), (4, 2, 3, 1), (1, 64, 64, 1), (1, 48, 48, 32)]:
        x, values = operands(pattern, 200, precision)
        expected = turned(product(x[:used], values), layout)
        x[used:] = torch.nan
        count = torch.tensor([used], dtype=torch.int32, device="cuda")
        given = turned(x, layout)
        for way in ways(device, pattern, 200, precision, layout):
            y = turned(poisoned(200, KSPattern(*pattern).width_out, dtype=x.dtype), layout)
            ks_matmul(device, given, values, y, count=count, layout=layout, precision=precision, way=way)
            in_use, rest = (y[:used], y[used:]) if layout is Layout.FIRST else (y[:, :used], y[:, used:])
            assert relative_error(in_use, expected) < LIMIT[precision], way
            assert bool(rest.isnan().all()), way


@pytest.mark.parametrize("pattern", [(2, 32, 32, 8), (2, 64, 64, 1), (3, 3, 2, 5), (1, 64, 128, 16)], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_a_row_gives_the_same_bits_alone_and_among_others(device, precision, pattern):
    x, values = operands(pattern, 1000, precision)
    together = poisoned(1000, KSPattern(*pattern).width_out, dtype=x.dtype)
    ks_matmul(device, x, values, together, precision=precision)

    for first, rows in [(0, 1), (517, 1), (100, 70)]:
        part = poisoned(rows, together.shape[1], dtype=x.dtype)
        ks_matmul(device, x[first : first + rows].clone(), values, part, precision=precision)
        assert torch.equal(part, together[first : first + rows])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_operands_need_not_be_aligned(device, precision, layout):
    for pattern in [(2, 32, 32, 8), (2, 64, 64, 1)]:
        x, values = operands(pattern, 72, precision, layout)
        expected = product(x, values, layout)
        whole_x, whole_values, whole_y = (
            torch.zeros(t.numel() + 1, dtype=x.dtype, device="cuda") for t in (x, values, expected)
        )
        whole_x[1:], whole_values[1:] = x.flatten(), values.flatten()
        y = whole_y[1:].view(expected.shape)

        shifted = whole_x[1:].view(x.shape), whole_values[1:].view(values.shape)
        ks_matmul(device, *shifted, y, layout=layout, precision=precision)

        assert relative_error(y, expected) < LIMIT[precision]


CHAINS = [
    [(6, 64, 64, 1)],
    [(64, 64, 64, 1), (1, 64, 256, 16)],
    [(64, 64, 64, 1), (1, 64, 64, 64)],
    [(16, 64, 256, 1), (1, 64, 64, 16)],
    [(2, 48, 192, 1), (1, 192, 48, 2)],
    [(2 ** (7 - level), 2, 2, 2 ** (level - 1)) for level in range(1, 8)],
]


@pytest.mark.parametrize("rows", [1, 77, 1000])
@pytest.mark.parametrize("chain", CHAINS, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_a_chain_agrees_with_its_reference(device, precision, chain, rows):
    x, factors = operands(chain[0], rows, precision)[0], [operands(p, 0, precision)[1] for p in chain]
    problems = [Problem(KSPattern(*pattern), rows, precision) for pattern in chain]
    bias = torch.randn(problems[-1].pattern.width_out, device="cuda")
    expected = x.double()
    for values in factors:
        expected = reference.ks_matmul(expected, values.double())
    expected = torch.relu(expected + bias.double())
    planned = Chain.of(device.limits, problems, lambda stage: stage.pack(factors))
    first, second = (poisoned(size, dtype=x.dtype) for size in planned.between)
    scratch = torch.full((planned.scratch_bytes,), 255, dtype=torch.uint8, device="cuda")
    y = poisoned(rows, problems[-1].pattern.width_out, dtype=x.dtype)

    for _ in range(2):  # what a launch leaves in its scratch memory must not matter to the next
        y.fill_(torch.nan)
        epilogue = Epilogue(bias, activation=Activation.RELU)
        planned.launch(device, Operands(x, y, epilogue, scratch=scratch), (first, second))
        assert relative_error(y, expected) < LIMIT[precision] * len(chain) ** 0.5 * 1.5


@pytest.mark.parametrize("rows", [1, 64, 1000])
@pytest.mark.parametrize("chain", CHAINS, ids=str)
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16], ids=str)
def test_a_fused_chain_gives_the_bits_of_factor_after_factor(device, precision, chain, rows):
    x, factors = operands(chain[0], rows, precision)[0], [operands(p, 0, precision)[1] for p in chain]
    problems = [Problem(KSPattern(*pattern), rows, precision) for pattern in chain]
    if all(len(stage.problems) == 1 for stage in stages(problems, device.limits)):
        pytest.skip("nothing is fused here")
    planned = Chain.of(device.limits, problems, lambda stage: stage.pack(factors))
    first, second = (poisoned(size, dtype=x.dtype) for size in planned.between)
    scratch = torch.zeros(planned.scratch_bytes, dtype=torch.uint8, device="cuda")
    y = poisoned(rows, problems[-1].pattern.width_out, dtype=x.dtype)
    planned.launch(device, Operands(x, y, scratch=scratch), (first, second))

    expected = x
    for problem, values in zip(problems, factors, strict=True):
        between = poisoned(rows, problem.pattern.width_out, dtype=x.dtype)
        ks_matmul(device, expected, values, between)
        expected = between
    assert torch.equal(y, expected)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("pattern", [(16, 64, 64, 1), (1, 64, 64, 16)], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_counts_of_elements_may_pass_two_to_the_31(device, precision, pattern, layout):
    rows = 2**21 + 104
    values = operands(pattern, 0, precision)[1]
    shape = (rows, 1024) if layout is Layout.FIRST else (1024, rows)
    x = torch.randn(shape, dtype=values.dtype, device="cuda")
    parts = [slice(0, 100), slice(rows // 2, rows // 2 + 100), slice(rows - 100, rows)]

    for way in ways(device, pattern, rows, precision, layout)[:3]:
        y = poisoned(*shape, dtype=values.dtype)
        ks_matmul(device, x, values, y, layout=layout, precision=precision, way=way)
        for part in parts:
            there, done = (x[part], y[part]) if layout is Layout.FIRST else (x[:, part], y[:, part])
            assert relative_error(done, product(there, values, layout)) < LIMIT[precision], way
