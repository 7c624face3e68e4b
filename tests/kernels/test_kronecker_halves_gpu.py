"""fp32 and tf32 factors by fp16 halves on a GPU, every tile, against sums in float64."""

import pytest
import torch
from torch import Tensor

from lacuna_kernels import Precision
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker import exchange_halves
from lacuna_kernels.cuda.kronecker.exchange_halves import ExchangeHalves
from lacuna_kernels.cuda.kronecker.halves import WAYS, Halves
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.way import PLAIN, Epilogue, Operands
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.kronecker_linear import KSPattern
from tests.kernels.factors import LIMIT, operands, poisoned, product, relative_error

PATTERNS = [
    (1, 48, 48, 128),
    (2, 64, 64, 16),
    (3, 200, 72, 8),
    (1, 40, 24, 12),
    (2, 96, 80, 4),
    (2, 49, 17, 4),
    (4, 130, 40, 2),
    (5, 64, 20, 3),
    (2, 52, 33, 3),
    (2, 60, 100, 6),
    (2, 33, 35, 5),
    (3, 7, 3, 2),
    (1, 64, 1024, 8),
]
ROWS = [1, 77, 1000]

pytestmark = pytest.mark.gpu


def multiply(
    device: Device,
    way: Halves | ExchangeHalves,
    x: Tensor,
    values: Tensor,
    epilogue: Epilogue = PLAIN,
    y: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """What a way makes of x, in y if it is given."""
    pattern = KSPattern(*values.shape)
    if y is None:
        y = poisoned(len(x), pattern.width_out, dtype=x.dtype)
    aligned = all(tensor.data_ptr() % 16 == 0 for tensor in (x, y))
    problem = Problem(pattern, len(x), way.precision, aligned=aligned)
    assert way.fits(problem, device.limits)
    way.launch(device, problem, way.pack(values), Operands(x, y, epilogue, count))
    return y


every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.precision} {way.name}")
BY_TEAMS = [way for way in exchange_halves.WAYS if way.teams.depth == 8]
one_way_a_precision = pytest.mark.parametrize(
    "way", (WAYS[0], WAYS[-1], BY_TEAMS[0], BY_TEAMS[-1]), ids=lambda way: f"{way.precision} {way.name}"
)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@every_way
def test_a_factor_agrees_with_float64(hopper, way, pattern):
    for rows in ROWS:
        x, values = operands(pattern, rows, way.precision)

        y = multiply(hopper, way, x, values)

        assert relative_error(y, product(x, values)) < LIMIT[way.precision], rows


@pytest.mark.parametrize("pattern", [(2, 100, 72, 24), (1, 64, 64, 2), (2, 52, 33, 3), (2, 33, 35, 5)], ids=str)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.TF32], ids=str)
def test_every_tile_gives_the_same_bits(hopper, precision, pattern):
    x, values = operands(pattern, 300, precision)

    made = [multiply(hopper, way, x, values) for way in WAYS if way.precision is precision]

    assert all(torch.equal(y, made[0]) for y in made)


@every_way
def test_a_row_gives_the_same_bits_alone_and_among_others(hopper, way):
    x, values = operands((2, 56, 40, way.run), 1000, way.precision)
    together = multiply(hopper, way, x, values)

    for first, rows in [(0, 1), (517, 1), (100, 70)]:
        alone = multiply(hopper, way, x[first : first + rows].clone(), values)
        assert torch.equal(alone, together[first : first + rows])


@pytest.mark.parametrize("activation", [None, *Activation], ids=str)
@pytest.mark.parametrize(
    "pattern", [(2, 32, 40, 8), (2, 32, 40, 2), (2, 9, 7, 3), (2, 52, 33, 3), (2, 49, 17, 4), (1, 40, 24, 12)], ids=str
)
@every_way
def test_the_epilogue_adds_bias_and_residual_and_applies_the_activation(hopper, way, pattern, activation):
    x, values = operands(pattern, 65, way.precision)
    width = KSPattern(*pattern).width_out
    bias, residual = torch.randn(width, device="cuda"), torch.randn(65, width, device="cuda")

    y = multiply(hopper, way, x, values, Epilogue(bias, residual, activation, 0.2))

    expected = activate(product(x, values) + bias.double() + residual.double(), activation, 0.2)
    assert relative_error(y, expected) < LIMIT[way.precision]


@one_way_a_precision
def test_the_residual_may_be_the_output_itself(hopper, way):
    x, values = operands((2, 32, 32, 8), 100, way.precision)
    y = torch.randn(100, 512, device="cuda")
    expected = product(x, values) + y.double()

    multiply(hopper, way, x, values, Epilogue(residual=y), y)

    assert relative_error(y, expected) < LIMIT[way.precision]


@pytest.mark.parametrize("used", [0, 1, 63, 64, 200])
@every_way
def test_rows_past_the_count_are_not_written(hopper, way, used):
    x, values = operands((2, 72, 32, way.run), 200, way.precision)

    y = multiply(hopper, way, x, values, count=torch.tensor([used], dtype=torch.int32, device="cuda"))

    assert relative_error(y[:used], product(x[:used], values)) < LIMIT[way.precision]
    assert bool(y[used:].isnan().all())


@every_way
def test_operands_need_not_be_aligned(hopper, way):
    x, values = operands((2, 32, 48, way.run), 70, way.precision)
    shifted = torch.zeros(x.numel() + 1, device="cuda")[1:].view_as(x).copy_(x)
    y = poisoned(70 * 64 * way.run + 1, dtype=x.dtype)[1:].view(70, -1)

    multiply(hopper, way, shifted, values, y=y)

    assert relative_error(y, product(x, values)) < LIMIT[way.precision]


@one_way_a_precision
def test_rows_and_columns_of_any_size_keep_their_bits(hopper, way):
    x, values = operands((2, 61, 40, 8), 61, way.precision)
    sizes = 10.0 ** torch.arange(-15.0, 15.5, 0.5, device="cuda")
    x, values = x * sizes.view(-1, 1), values * sizes.flip(0).view(1, -1, 1, 1)

    y = multiply(hopper, way, x, values).double().view(61, 2, 61, 8)

    expected = product(x, values).view(61, 2, 61, 8)
    error = (y - expected).norm(dim=(1, 3)) / expected.norm(dim=(1, 3))
    assert float(error.max()) < 3 * LIMIT[way.precision]


@one_way_a_precision
def test_large_values_beside_small_ones_cost_the_small_ones_little(hopper, way):
    x, values = operands((1, 64, 64, 8), 200, way.precision)
    x *= 10.0 ** torch.empty_like(x).uniform_(-4, 4)

    y = multiply(hopper, way, x, values)

    assert relative_error(y, product(x, values)) < LIMIT[way.precision]


@one_way_a_precision
def test_rows_of_zeros_give_the_bias_and_leave_others_alone(hopper, way):
    x, values = operands((2, 48, 48, 8), 128, way.precision)
    bias = torch.randn(768, device="cuda")
    x[::2] = 0

    y = multiply(hopper, way, x, values, Epilogue(bias))

    assert torch.equal(y[::2], bias.expand(64, -1))
    assert relative_error(y, product(x, values) + bias.double()) < LIMIT[way.precision]


@one_way_a_precision
def test_what_is_not_a_number_stays_in_its_row_and_its_l(hopper, way):
    x, values = operands((1, 48, 48, 8), 100, way.precision)
    x[7, 8 * 5 + 3] = torch.nan
    x[9, 8 * 20 + 6] = torch.inf

    y = multiply(hopper, way, x, values).view(100, 48, 8)

    bad = ~y.isfinite()
    assert bool(bad[7, :, 3].all())
    assert bool(bad[9, :, 6].all())
    assert int(bad.sum()) == 2 * 48


@pytest.mark.slow
@one_way_a_precision
def test_counts_of_elements_may_pass_two_to_the_31(hopper, way):
    whole = isinstance(way, ExchangeHalves) and way.teams.whole
    rows, pattern = 2**20 + 100, (4, 64, 64, 8) if whole else (1, 64, 64, 32)
    values = operands(pattern, 0, way.precision)[1]
    x, y = torch.randn(rows, 2048, device="cuda"), torch.empty(rows, 2048, device="cuda")
    y[-100:] = torch.nan

    multiply(hopper, way, x, values, y=y)

    for part in (slice(0, 100), slice(rows // 2, rows // 2 + 100), slice(rows - 100, rows)):
        assert relative_error(y[part], product(x[part], values)) < LIMIT[way.precision]
