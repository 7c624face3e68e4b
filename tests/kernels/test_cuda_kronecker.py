"""Kronecker-sparse factors on a GPU against sums in float64 over the same rounded operands."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lacuna_kernels import gpu_count
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker_linear import Epilogue, ks_chain, ks_chain_workspace, ks_matmul
from lacuna_kernels.cuda.kronecker_tiles import TILES, Method, Tile
from lacuna_kernels.ops import kronecker_linear as reference
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.kronecker_linear import KSPattern

LIMIT = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = list(LIMIT)
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
]

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    if not gpu_count():
        pytest.skip("no CUDA device, or no pycuda")
    opened = Device()
    yield opened
    opened.close()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    if not expected.numel():
        return 0.0
    return float((actual.double() - expected).norm() / expected.norm().clamp(min=1e-300))


def operands(pattern: tuple[int, ...], rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Fresh random rows and values, values scaled so that y is of unit size."""
    a, b, c, d = pattern
    x = torch.randn(rows, a * c * d, device="cuda").to(dtype)
    return x, (torch.randn(a, b, c, d, device="cuda") * c**-0.5).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device="cuda")


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_factor_agrees_with_float64(device, dtype, pattern, rows):
    x, values = operands(pattern, rows, dtype)
    y = poisoned(rows, KSPattern(*pattern).width_out, dtype=dtype)

    ks_matmul(device, x, values, y)

    assert relative_error(y, reference.ks_matmul(x.double(), values.double())) < LIMIT[dtype]


@pytest.mark.parametrize("pattern", [(2, 37, 45, 20), (3, 64, 64, 4), (2, 24, 40, 2), (4, 50, 30, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tile_gives_the_same_bits_as_the_others_of_its_method(device, dtype, pattern):
    x, values = operands(pattern, 130, dtype)
    expected, first = reference.ks_matmul(x.double(), values.double()), dict[Method, Tensor]()

    for tile in TILES[dtype]:
        y = poisoned(*expected.shape, dtype=dtype)
        ks_matmul(device, x, values, y, tile=tile)
        assert relative_error(y, expected) < LIMIT[dtype], tile
        assert torch.equal(y, first.setdefault(tile.method, y)), tile


@pytest.mark.parametrize("activation", [None, *Activation], ids=str)
@pytest.mark.parametrize("pattern", [(2, 32, 40, 8), (2, 9, 7, 3), (2, 16, 64, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_epilogue_adds_bias_and_residual_and_applies_the_activation(device, dtype, pattern, activation):
    x, values = operands(pattern, 65, dtype)
    width = KSPattern(*pattern).width_out
    bias, residual = torch.randn(width, device="cuda"), torch.randn(65, width, device="cuda").to(dtype)
    sums = reference.ks_matmul(x.double(), values.double()) + bias.double() + residual.double()
    y = poisoned(65, width, dtype=dtype)

    ks_matmul(device, x, values, y, Epilogue(bias, residual, activation, 0.2))

    assert relative_error(y, activate(sums, activation, 0.2)) < LIMIT[dtype]


def test_the_residual_may_be_the_output_itself(device):
    x, values = operands((2, 32, 32, 8), 100, torch.float16)
    y = torch.randn(100, 512, device="cuda").half()
    expected = reference.ks_matmul(x.double(), values.double()) + y.double()

    ks_matmul(device, x, values, y, Epilogue(residual=y))

    assert relative_error(y, expected) < LIMIT[torch.float16]


@pytest.mark.parametrize("used", [0, 1, 63, 64, 200])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_past_the_count_are_not_written(device, dtype, used):
    for pattern in [(2, 32, 32, 8), (4, 2, 3, 1), (1, 64, 64, 1)]:
        x, values = operands(pattern, 200, dtype)
        expected = reference.ks_matmul(x[:used].double(), values.double())
        y = poisoned(200, KSPattern(*pattern).width_out, dtype=dtype)

        ks_matmul(device, x, values, y, count=torch.tensor([used], dtype=torch.int32, device="cuda"))

        assert relative_error(y[:used], expected) < LIMIT[dtype]
        assert bool(y[used:].isnan().all())


@pytest.mark.parametrize("pattern", [(2, 32, 32, 8), (2, 64, 64, 1), (3, 3, 2, 5)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_gives_the_same_bits_alone_and_among_others(device, dtype, pattern):
    x, values = operands(pattern, 1000, dtype)
    together = poisoned(1000, KSPattern(*pattern).width_out, dtype=dtype)
    ks_matmul(device, x, values, together)

    for first, rows in [(0, 1), (517, 1), (100, 70)]:
        part = poisoned(rows, together.shape[1], dtype=dtype)
        ks_matmul(device, x[first : first + rows].clone(), values, part)
        assert torch.equal(part, together[first : first + rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operands_need_not_be_aligned(device, dtype):
    x, values = operands((2, 32, 32, 8), 70, dtype)
    expected = reference.ks_matmul(x.double(), values.double())
    shifted_x, shifted_values, whole = (torch.zeros(t.numel() + 1, dtype=dtype, device="cuda") for t in (x, values, x))
    shifted_x[1:], shifted_values[1:] = x.flatten(), values.flatten()
    y = whole[1:].view(70, 512)

    ks_matmul(device, shifted_x[1:].view_as(x), shifted_values[1:].view_as(values), y)

    assert relative_error(y, expected) < LIMIT[dtype]


@pytest.mark.parametrize(
    "chain",
    [
        [(6, 64, 64, 1)],
        [(64, 64, 64, 1), (1, 64, 256, 16)],
        [(2, 48, 192, 1), (1, 192, 48, 2)],
        [(2 ** (7 - level), 2, 2, 2 ** (level - 1)) for level in range(1, 8)],
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_chain_agrees_with_its_reference(device, dtype, chain):
    x, factors = operands(chain[0], 77, dtype)[0], [operands(pattern, 0, dtype)[1] for pattern in chain]
    patterns = [KSPattern(*pattern) for pattern in chain]
    bias = torch.randn(patterns[-1].width_out, device="cuda")
    expected = x.double()
    for values in factors:
        expected = reference.ks_matmul(expected, values.double())
    expected = torch.relu(expected + bias.double())
    first, second = (poisoned(size, dtype=dtype) for size in ks_chain_workspace(patterns, 77))
    y = poisoned(77, patterns[-1].width_out, dtype=dtype)

    ks_chain(device, x, factors, y, (first, second), Epilogue(bias, activation=Activation.RELU))

    assert relative_error(y, expected) < LIMIT[dtype] * len(chain) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tile"),
    [
        (torch.float16, Tile(Method.MMA, 64, 64, 1, 2, 2)),
        (torch.float16, Tile(Method.COLUMNS, 8)),
        (torch.float32, Tile(Method.SIMT, 128, 64, 1, 8, 4)),
    ],
    ids=str,
)
def test_counts_of_elements_may_pass_two_to_the_31(device, dtype, tile):
    rows, pattern = 2**21 + 100, (16, 64, 64, 1)
    values = operands(pattern, 0, dtype)[1]
    x, y = torch.randn(rows, 1024, dtype=dtype, device="cuda"), torch.empty(rows, 1024, dtype=dtype, device="cuda")
    y[-100:] = torch.nan

    ks_matmul(device, x, values, y, tile=tile)

    for part in (slice(0, 100), slice(rows // 2, rows // 2 + 100), slice(rows - 100, rows)):
        assert relative_error(y[part], reference.ks_matmul(x[part].double(), values.double())) < LIMIT[dtype]


def test_launches_can_be_captured_and_replayed(device):
    x, values = operands((1, 48, 48, 16), 300, torch.float16)
    y = poisoned(300, 768, dtype=torch.float16)
    ks_matmul(device, x, values, y)
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), device.new_stream()
    with torch.cuda.graph(graph, stream=stream):
        ks_matmul(device, x, values, y)

    x.normal_()
    graph.replay()

    assert relative_error(y, reference.ks_matmul(x.double(), values.double())) < LIMIT[torch.float16]
