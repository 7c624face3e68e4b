"""What tests of Kronecker-sparse factors share: a GPU, operands, the exact product, and how far from it is too far."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lacuna_kernels import Precision
from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.kronecker.problem import Layout
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.ops import kronecker_linear as reference

H200 = DeviceLimits(multiprocessors=132, shared_bytes=232_448, architecture="sm_90")
LIMIT = {Precision.FP32: 5e-7, Precision.TF32: 5e-4, Precision.FP16: 5e-4, Precision.BF16: 4e-3}
"""Relative L2 error."""
FMA_LIMIT = 1e-6
"""Of sums in fp32 without tensor cores: 0.3 * 2^-24 * sqrt(c), 4e-7 at c = 512, with room for few outputs."""


def relative_error(actual: Tensor, expected: Tensor) -> float:
    if not expected.numel():
        return 0.0
    return float((actual.double() - expected).norm() / expected.norm().clamp(min=1e-300))


def turned(matrix: Tensor, layout: Layout) -> Tensor:
    """A matrix with one row a vector, as the layout has it."""
    return matrix if layout is Layout.FIRST else matrix.T.contiguous()


def operands(
    pattern: Sequence[int], rows: int, precision: Precision, layout: Layout = Layout.FIRST
) -> tuple[Tensor, Tensor]:
    """Fresh random rows and values, values scaled so that y is of unit size."""
    a, b, c, d = pattern
    dtype = DTYPES[precision]
    x = torch.randn(rows, a * c * d, device="cuda").to(dtype)
    return turned(x, layout), (torch.randn(a, b, c, d, device="cuda") * c**-0.5).to(dtype)


def product(x: Tensor, values: Tensor, layout: Layout = Layout.FIRST) -> Tensor:
    """In float64, as the layout has it."""
    rows = x.double() if layout is Layout.FIRST else x.double().T
    return turned(reference.ks_matmul(rows, values.double()), layout)


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device="cuda")
