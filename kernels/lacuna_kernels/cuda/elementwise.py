"""Launches of src/elementwise.cu: whatever needs one element of each input for one of the output."""

from itertools import product

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ACTIVATION_CODES, ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.ops.activation import DEFAULT_SLOPE, Activation

THREADS = 256
BLOCKS_PER_MULTIPROCESSOR = 8


def variant(source: torch.dtype, result: torch.dtype) -> Variant:
    """The kernel for these types."""
    constants = (("ELEMENT_IN", ELEMENTS[source]), ("ELEMENT_OUT", ELEMENTS[result]))
    return Variant("elementwise.cu", "elementwise", constants)


VARIANTS = tuple(variant(source, result) for source, result in product(ELEMENTS, repeat=2))


def elementwise(
    device: Device,
    y: Tensor,
    x: Tensor,
    rows: Tensor,
    *,
    plus: Tensor | None = None,
    affine: tuple[Tensor, Tensor] | None = None,
    inner: int = 1,
    activation: Activation | None = None,
    slope: float = DEFAULT_SLOPE,
) -> None:
    """Launch y = f((x + plus) * scale + shift) over the first `rows` rows.

    y, x, plus  [capacity, width]; rows may lie further apart than width, elements of a row may not
    rows        int32 [1] on the device
    affine      scale and shift, fp32 [channels]; an element's channel is (column / inner) % channels
    """
    scale, shift = affine or (None, None)
    blocks = min(-(-x.numel() // THREADS), device.limits.multiprocessors * BLOCKS_PER_MULTIPROCESSOR)
    device.kernel(variant(x.dtype, y.dtype))(
        (blocks, 1, 1),
        (THREADS, 1, 1),
        *(x, plus, scale, shift, y, rows),
        *(x.shape[1], inner, 1 if scale is None else len(scale)),
        *(x.stride(0), 0 if plus is None else plus.stride(0), y.stride(0)),
        *(ACTIVATION_CODES[activation], float(slope)),
    )
