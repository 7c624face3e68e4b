"""Factors by bulk tensor copies, beyond what holds for every way (test_cuda_kronecker.py)."""

import pytest
import torch
from torch import Tensor

from lacuna_kernels import Precision
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.tma import WAYS, Tma
from lacuna_kernels.cuda.kronecker.way import Epilogue, Operands
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.ops import kronecker_linear as reference
from lacuna_kernels.ops.activation import Activation
from lacuna_kernels.ops.kronecker_linear import KSPattern
from tests.kernels.factors import LIMIT, turned

pytestmark = pytest.mark.gpu


class Case:
    """Fresh random operands for a problem, y poisoned, and what y must be."""

    def __init__(self, pattern: tuple[int, ...], rows: int, precision: Precision, layout: Layout) -> None:
        self.problem = Problem(KSPattern(*pattern), rows, precision, layout)
        dtype = self.problem.dtype
        self.rows = torch.randn(rows, self.problem.pattern.width_in, device="cuda").to(dtype)
        self.values = (torch.randn(pattern, device="cuda") * pattern[2] ** -0.5).to(dtype)
        self.x = turned(self.rows, layout)
        self.y = turned(
            torch.full((rows, self.problem.pattern.width_out), torch.nan, dtype=dtype, device="cuda"), layout
        )

    def launch(self, device: Device, way: Tma, epilogue: Epilogue | None = None, count: Tensor | None = None) -> Tensor:
        scratch = torch.empty(way.scratch_bytes(self.problem), dtype=torch.uint8, device="cuda")
        operands = Operands(self.x, self.y, epilogue or Epilogue(), count, scratch)
        way.launch(device, self.problem, way.pack(self.values), operands)
        return self.y

    def error(self, expected: Tensor | None = None) -> float:
        """Relative L2 error of y, against float64."""
        if expected is None:
            expected = reference.ks_matmul(self.rows.double(), self.values.double())
        return float((turned(self.y.double(), self.problem.layout) - expected).norm() / expected.norm())


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16], ids=str)
@pytest.mark.parametrize("rows", [1, 8, 250, 3000])
def test_blocks_of_every_width_agree_with_float64(hopper, way, precision, rows):
    for b, c in [(48, 48), (64, 256), (192, 96), (384, 200), (520, 64)]:
        d = 3 if way.layout is Layout.LAST else 1
        case = Case((4, b, c, d), rows, precision, way.layout)

        case.launch(hopper, way)

        assert case.error() < LIMIT[precision], (b, c)


@pytest.mark.parametrize("layout", Layout, ids=str)
def test_every_tile_gives_the_same_bits(hopper, layout):
    case = Case((3, 328, 136, 1), 1000, Precision.FP16, layout)

    made = [case.launch(hopper, way).clone() for way in WAYS if way.layout is layout]

    assert all(torch.equal(made[0], y) for y in made)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_launch_after_launch_takes_every_tile_once_more(hopper, way):
    d = 4 if way.layout is Layout.LAST else 1
    case = Case((16, 64, 64, d), 4000, Precision.FP16, way.layout)
    first = case.launch(hopper, way).clone()

    for _ in range(50):
        case.y.fill_(torch.nan)
        assert torch.equal(case.launch(hopper, way), first)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_a_captured_launch_follows_the_count(hopper, way):
    case, count = (
        Case((2, 64, 64, 1), 1200, Precision.BF16, way.layout),
        torch.zeros(1, dtype=torch.int32, device="cuda"),
    )
    expected = turned(reference.ks_matmul(case.rows.double(), case.values.double()), way.layout)
    case.launch(hopper, way, count=count)  # compiled before the capture
    packed = way.pack(case.values)
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), hopper.new_stream()
    with torch.cuda.graph(graph, stream=stream):
        way.launch(hopper, case.problem, packed, Operands(case.x, case.y, count=count))

    for used in [1200, 0, 77, 640, 1]:
        case.y.fill_(torch.nan)
        count.fill_(used)
        graph.replay()
        made = case.y.T if way.layout is Layout.LAST else case.y
        wanted = expected.T if way.layout is Layout.LAST else expected
        assert torch.allclose(made[:used].double(), wanted[:used], rtol=2e-2, atol=2e-2)
        assert bool(made[used:].isnan().all())


@pytest.mark.parametrize("used", [1001, 500, 3])
@pytest.mark.parametrize("way", [way for way in WAYS if way.layout is Layout.LAST], ids=lambda way: way.name)
def test_batch_size_last_takes_rows_of_any_alignment(hopper, way, used):
    case = Case((2, 72, 50, 3), 1001, Precision.FP16, Layout.LAST)
    case.y.normal_()
    before, bias = case.y.clone(), torch.randn(case.problem.pattern.width_out, device="cuda")
    sums = reference.ks_matmul(case.rows.double(), case.values.double()) + bias.double() + before.T.double()

    case.launch(
        hopper, way, Epilogue(bias, case.y, Activation.RELU), torch.tensor([used], dtype=torch.int32, device="cuda")
    )

    error = (case.y[:, :used].T.double() - torch.relu(sums)[:used]).norm() / torch.relu(sums)[:used].norm()
    assert float(error) < LIMIT[Precision.FP16]
    assert torch.equal(case.y[:, used:], before[:, used:])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_counts_of_elements_may_pass_two_to_the_31(hopper, way):
    pattern = KSPattern(16, 64, 64, 1) if way.layout is Layout.FIRST else KSPattern(2, 64, 64, 8)
    rows, dtype = 2**21 + 104, DTYPES[Precision.FP16]
    values = (torch.randn(pattern.values, device="cuda") / 8).to(dtype)
    shape = (rows, 1024) if way.layout is Layout.FIRST else (1024, rows)
    x, y = torch.randn(shape, dtype=dtype, device="cuda"), torch.full(shape, torch.nan, dtype=dtype, device="cuda")

    way.launch(hopper, Problem(pattern, rows, Precision.FP16, way.layout), way.pack(values), Operands(x, y))

    for first in (0, rows // 2, rows - 100):
        part = slice(first, first + 100)
        made, given = (m[part] if way.layout is Layout.FIRST else m[:, part].T for m in (y, x))
        expected = reference.ks_matmul(given.double(), values.double())
        assert float((made.double() - expected).norm() / expected.norm()) < LIMIT[Precision.FP16]
