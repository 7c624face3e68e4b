"""Precisions and the types of the elements that they are computed on."""

import torch
from torch import Tensor

from lacuna_kernels.graph import Precision

DTYPES = {
    Precision.FP32: torch.float32,
    Precision.TF32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}
"""The type of the elements, by precision."""

NATIVE = {torch.float32: Precision.FP32, torch.float16: Precision.FP16, torch.bfloat16: Precision.BF16}
"""The precision that a type stands for if none is named."""


def round_to_tf32(x: Tensor) -> Tensor:
    """Round fp32 to the 11 significant bits of tf32, to nearest, ties away from zero."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
