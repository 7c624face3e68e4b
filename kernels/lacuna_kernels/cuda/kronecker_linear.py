"""Launching the kernels for Kronecker-sparse factors, alone and in chains."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ACTIVATION_CODES
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker_tiles import VARIANTS, DeviceLimits, Tile, candidates
from lacuna_kernels.errors import Unsupported
from lacuna_kernels.ops.activation import DEFAULT_SLOPE, Activation
from lacuna_kernels.ops.kronecker_linear import KSPattern

__all__ = ["VARIANTS", "Epilogue", "ks_chain", "ks_chain_workspace", "ks_matmul", "limits_of"]

_LARGEST_GRID = 2**31 - 1
_LARGEST_ENTRY = 2**30


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What happens to the sums before they are written: y = f(sums + bias + residual), in fp32.

    bias      fp32 [width_out], or None
    residual  [rows, width_out] of x's type, or None; may be y itself
    """

    bias: Tensor | None = None
    residual: Tensor | None = None
    activation: Activation | None = None
    negative_slope: float = DEFAULT_SLOPE


PLAIN = Epilogue()


def limits_of(device: Device) -> DeviceLimits:
    """Return what the choice of a tile needs to know of a device."""
    return DeviceLimits(device.multiprocessors, device.shared_bytes_max)


def choose(device: Device, pattern: KSPattern, dtype: torch.dtype, rows: int) -> Tile:
    """Return the best guess for a device; raises Unsupported for entries that the kernels cannot count to."""
    if max(pattern.values) >= _LARGEST_ENTRY:
        raise Unsupported(f"{pattern}: on a GPU entries must be under {_LARGEST_ENTRY}")
    return candidates(pattern, dtype, rows, limits_of(device))[0]


def ks_matmul(
    device: Device,
    x: Tensor,
    values: Tensor,
    y: Tensor,
    epilogue: Epilogue = PLAIN,
    *,
    count: Tensor | None = None,
    tile: Tile | None = None,
) -> None:
    """Enqueue y = f(x @ K.T + bias + residual) for one factor K; see KSPattern.

    x       [rows, a*c*d]   fp32, fp16 or bf16, contiguous
    values  [a, b, c, d]    of x's type, contiguous
    y       [rows, a*b*d]   of x's type, contiguous; must not overlap x
    count   int32 [1] on the device: rows in use; rows past it are neither read nor written. None: all of them
    tile    instead of the best guess
    """
    rows, pattern = len(x), KSPattern(*values.shape)
    if tile is None:
        tile = choose(device, pattern, x.dtype, rows)
    device.kernel(tile.variant(x.dtype))(
        (min(tile.blocks(pattern, rows), _LARGEST_GRID), 1, 1),
        (tile.threads, 1, 1),
        x,
        values,
        epilogue.bias,
        epilogue.residual,
        y,
        count,
        rows,
        *pattern.values,
        ACTIVATION_CODES[epilogue.activation],
        float(epilogue.negative_slope),
    )


def ks_chain_workspace(chain: Sequence[KSPattern], rows: int) -> tuple[int, int]:
    """Elements of x's type that the two buffers between the factors of a chain must hold."""
    between = [rows * pattern.width_out for pattern in chain[:-1]]
    return max(between[0::2], default=0), max(between[1::2], default=0)


def ks_chain(
    device: Device,
    x: Tensor,
    factors: Sequence[Tensor],
    y: Tensor,
    workspace: tuple[Tensor, Tensor],
    epilogue: Epilogue = PLAIN,
    *,
    count: Tensor | None = None,
) -> None:
    """Enqueue factor after factor, factors[0] meeting x first; the epilogue belongs to the last.

    workspace  two flat buffers of x's type, of at least the sizes that `ks_chain_workspace` says

    Between factors values are rounded to x's type.
    """
    rows = len(x)
    for index, values in enumerate(factors[:-1]):
        width = KSPattern(*values.shape).width_out
        between = workspace[index % 2][: rows * width].view(rows, width)
        ks_matmul(device, x, values, between, count=count)
        x = between
    ks_matmul(device, x, factors[-1], y, epilogue, count=count)
