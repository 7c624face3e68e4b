"""fp32 and tf32 factors by fp16 halves on a GPU, every tile, against sums in float64."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lacuna_kernels import Precision, gpu_count
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker.halves import WAYS, Halves
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.way import PLAIN, Epilogue, Operands
from lacuna_kernels.ops import kronecker_linear as reference
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.kronecker_linear import KSPattern

LIMIT = {Precision.FP32: 5e-7, Precision.TF32: 5e-4}
PATTERNS = [
    (1, 48, 48, 128),
    (2, 64, 64, 16),
    (3, 200, 72, 8),
    (1, 40, 24, 12),
    (2, 96, 80, 4),
    (2, 49, 17, 4),
    (4, 130, 40, 2),
    (5, 64, 20, 3),
    (2, 60, 100, 6),
    (2, 33, 35, 5),
    (3, 7, 3, 2),
    (1, 64, 1024, 8),
]
ROWS = [1, 77, 1000]

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    if not gpu_count():
        pytest.skip("no CUDA device, or no pycuda")
    opened = Device()
    if not opened.limits.hopper:
        opened.close()
        pytest.skip("for Hopper")
    yield opened
    opened.close()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm().clamp(min=1e-300))


def operands(pattern: tuple[int, ...], rows: int) -> tuple[Tensor, Tensor]:
    """Fresh random rows and values, values scaled so that y is of unit size."""
    a, b, c, d = pattern
    return torch.randn(rows, a * c * d, device="cuda"), torch.randn(a, b, c, d, device="cuda") * c**-0.5


def poisoned(*shape: int) -> Tensor:
    return torch.full(shape, torch.nan, device="cuda")


def exact(x: Tensor, values: Tensor) -> Tensor:
    return reference.ks_matmul(x.double(), values.double())


def multiply(
    device: Device,
    way: Halves,
    x: Tensor,
    values: Tensor,
    epilogue: Epilogue = PLAIN,
    y: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """What a way makes of x, in y if it is given."""
    pattern = KSPattern(*values.shape)
    if y is None:
        y = poisoned(len(x), pattern.width_out)
    problem = Problem(pattern, len(x), way.precision)
    assert way.fits(problem, device.limits)
    way.launch(device, problem, way.pack(values), Operands(x, y, epilogue, count))
    return y


every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.precision} {way.name}")
one_way_a_precision = pytest.mark.parametrize("way", (WAYS[0], WAYS[-1]), ids=lambda way: str(way.precision))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@every_way
def test_a_factor_agrees_with_float64(device, way, pattern):
    for rows in ROWS:
        x, values = operands(pattern, rows)

        y = multiply(device, way, x, values)

        assert relative_error(y, exact(x, values)) < LIMIT[way.precision], rows


@pytest.mark.parametrize("pattern", [(2, 100, 72, 24), (1, 64, 64, 2), (2, 33, 35, 5)], ids=str)
@pytest.mark.parametrize("precision", list(LIMIT), ids=str)
def test_every_tile_gives_the_same_bits(device, precision, pattern):
    x, values = operands(pattern, 300)

    made = [multiply(device, way, x, values) for way in WAYS if way.precision is precision]

    assert all(torch.equal(y, made[0]) for y in made)


@every_way
def test_a_row_gives_the_same_bits_alone_and_among_others(device, way):
    x, values = operands((2, 56, 40, way.run), 1000)
    together = multiply(device, way, x, values)

    for first, rows in [(0, 1), (517, 1), (100, 70)]:
        alone = multiply(device, way, x[first : first + rows].clone(), values)
        assert torch.equal(alone, together[first : first + rows])


@pytest.mark.parametrize("activation", [None, *Activation], ids=str)
@pytest.mark.parametrize("pattern", [(2, 32, 40, 8), (2, 9, 7, 3)], ids=str)
@one_way_a_precision
def test_the_epilogue_adds_bias_and_residual_and_applies_the_activation(device, way, pattern, activation):
    x, values = operands(pattern, 65)
    width = KSPattern(*pattern).width_out
    bias, residual = torch.randn(width, device="cuda"), torch.randn(65, width, device="cuda")

    y = multiply(device, way, x, values, Epilogue(bias, residual, activation, 0.2))

    expected = activate(exact(x, values) + bias.double() + residual.double(), activation, 0.2)
    assert relative_error(y, expected) < LIMIT[way.precision]


@one_way_a_precision
def test_the_residual_may_be_the_output_itself(device, way):
    x, values = operands((2, 32, 32, 8), 100)
    y = torch.randn(100, 512, device="cuda")
    expected = exact(x, values) + y.double()

    multiply(device, way, x, values, Epilogue(residual=y), y)

    assert relative_error(y, expected) < LIMIT[way.precision]


@pytest.mark.parametrize("used", [0, 1, 63, 64, 200])
@every_way
def test_rows_past_the_count_are_not_written(device, way, used):
    x, values = operands((2, 72, 32, way.run), 200)

    y = multiply(device, way, x, values, count=torch.tensor([used], dtype=torch.int32, device="cuda"))

    assert relative_error(y[:used], exact(x[:used], values)) < LIMIT[way.precision]
    assert bool(y[used:].isnan().all())


@every_way
def test_operands_need_not_be_aligned(device, way):
    x, values = operands((2, 32, 48, way.run), 70)
    shifted = torch.zeros(x.numel() + 1, device="cuda")[1:].view_as(x).copy_(x)
    y = poisoned(70 * 64 * way.run + 1)[1:].view(70, -1)

    multiply(device, way, shifted, values, y=y)

    assert relative_error(y, exact(x, values)) < LIMIT[way.precision]


@one_way_a_precision
def test_rows_and_columns_of_any_size_keep_their_bits(device, way):
    x, values = operands((2, 61, 40, 8), 61)
    sizes = 10.0 ** torch.arange(-15.0, 15.5, 0.5, device="cuda")
    x, values = x * sizes.view(-1, 1), values * sizes.flip(0).view(1, -1, 1, 1)

    y = multiply(device, way, x, values).double().view(61, 2, 61, 8)

    expected = exact(x, values).view(61, 2, 61, 8)
    error = (y - expected).norm(dim=(1, 3)) / expected.norm(dim=(1, 3))
    assert float(error.max()) < 3 * LIMIT[way.precision]


@one_way_a_precision
def test_large_values_beside_small_ones_cost_the_small_ones_little(device, way):
    x, values = operands((1, 64, 64, 8), 200)
    x *= 10.0 ** torch.empty_like(x).uniform_(-4, 4)

    y = multiply(device, way, x, values)

    assert relative_error(y, exact(x, values)) < LIMIT[way.precision]


@one_way_a_precision
def test_rows_of_zeros_give_the_bias_and_leave_others_alone(device, way):
    x, values = operands((2, 48, 48, 8), 128)
    bias = torch.randn(768, device="cuda")
    x[::2] = 0

    y = multiply(device, way, x, values, Epilogue(bias))

    assert torch.equal(y[::2], bias.expand(64, -1))
    assert relative_error(y, exact(x, values) + bias.double()) < LIMIT[way.precision]


@one_way_a_precision
def test_what_is_not_a_number_stays_in_its_row_and_its_l(device, way):
    x, values = operands((1, 48, 48, 8), 100)
    x[7, 8 * 5 + 3] = torch.nan
    x[9, 8 * 20 + 6] = torch.inf

    y = multiply(device, way, x, values).view(100, 48, 8)

    bad = ~y.isfinite()
    assert bool(bad[7, :, 3].all())
    assert bool(bad[9, :, 6].all())
    assert int(bad.sum()) == 2 * 48


@pytest.mark.slow
@one_way_a_precision
def test_counts_of_elements_may_pass_two_to_the_31(device, way):
    rows, pattern = 2**20 + 100, (1, 64, 64, 32)
    values = operands(pattern, 0)[1]
    x, y = torch.randn(rows, 2048, device="cuda"), torch.empty(rows, 2048, device="cuda")
    y[-100:] = torch.nan

    multiply(device, way, x, values, y=y)

    for part in (slice(0, 100), slice(rows // 2, rows // 2 + 100), slice(rows - 100, rows)):
        assert relative_error(y[part], exact(x[part], values)) < LIMIT[way.precision]
