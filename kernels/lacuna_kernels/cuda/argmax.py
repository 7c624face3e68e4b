"""Launch of src/argmax.cu: scores to labels."""

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device

THREADS = 256


def _variant(dtype: torch.dtype) -> Variant:
    return Variant("argmax.cu", "argmax", (("ELEMENT", ELEMENTS[dtype]),))


VARIANTS = tuple(map(_variant, ELEMENTS))


def argmax(device: Device, x: Tensor, count: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
    """Launch labels[i] = first index of the largest of x[i], or of x[rows[i]] and 0 for -1, for the labels in use.

    x       [n, channels], any float type
    count   int32 [1]
    labels  int32 [capacity]
    rows    int32 [capacity]
    """
    grid = (-(-len(labels) // THREADS), 1, 1)
    device.kernel(_variant(x.dtype))(grid, (THREADS, 1, 1), x, x.stride(0), x.shape[1], count, rows, labels)
