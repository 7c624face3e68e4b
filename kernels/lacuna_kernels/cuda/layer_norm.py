"""Launch of src/layer_norm.cu: every row to mean 0 and variance 1, then scaled and shifted by feature."""

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device

ROWS_PER_BLOCK, THREADS = 8, 256
VECTOR_BYTES = 16


def _variant(dtype: torch.dtype, vector: int) -> Variant:
    return Variant("layer_norm.cu", "layer_norm", (("ELEMENT", ELEMENTS[dtype]), ("VECTOR", vector)))


VARIANTS = tuple(_variant(dtype, vector) for dtype in ELEMENTS for vector in (1, VECTOR_BYTES // dtype.itemsize))


def layer_norm(
    device: Device, y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, count: Tensor, tokens: int = 1
) -> None:
    """Launch y = (x - mean) / sqrt(variance + eps) * weight + bias, row by row, over the first count * tokens rows.

    y, x          [rows, features], contiguous, of one float type; y may be x
    weight, bias  fp32 [features]
    count         int32 [1] on the device: rows in use, or with tokens sequences in use
    """
    vector = VECTOR_BYTES // x.dtype.itemsize
    aligned = all(tensor.data_ptr() % VECTOR_BYTES == 0 for tensor in (x, y))
    variant = _variant(x.dtype, vector if aligned and x.shape[1] % vector == 0 else 1)
    grid = (-(-len(x) // ROWS_PER_BLOCK), 1, 1)
    device.kernel(variant)(grid, (THREADS, 1, 1), x, weight, bias, y, count, tokens, x.shape[1], float(eps))
