"""Launches of src/global_pool.cu: one row per cloud."""

from typing import Literal

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.scan import blocks

WARP = 32
WARPS = 32


def _variant(dtype: torch.dtype, maximum: bool) -> Variant:
    return Variant("global_pool.cu", "global_pool", (("ELEMENT", ELEMENTS[dtype]), ("POOL_MAX", int(maximum))))


VARIANTS = tuple(_variant(dtype, maximum) for dtype in ELEMENTS for maximum in (False, True))


def global_pool(device: Device, x: Tensor, offsets: Tensor, y: Tensor, mode: Literal["mean", "max"]) -> None:
    """Launch y[item] = mean or maximum of the item's rows of x; zeros for an item without rows.

    x        [capacity, channels]
    offsets  int32 [items + 1], where the rows of each item begin
    y        [items, channels] of the type of x
    """
    items, channels = y.shape
    device.kernel(_variant(x.dtype, mode == "max"))(
        (items, blocks(channels, WARP), 1),
        (WARP * WARPS, 1, 1),
        *(x, x.stride(0), offsets, y, y.stride(0), channels),
    )
