"""Launches of src/row_means.cu: the mean of the points of each row, added in their order."""

from itertools import product

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.scan import blocks
from lacuna_kernels.cuda.sort import sort, sort_work

THREADS = 256


def _row_means(name: str, source: torch.dtype, result: torch.dtype) -> Variant:
    constants = (("ELEMENT_IN", ELEMENTS[source]), ("ELEMENT_OUT", ELEMENTS[result]))
    return Variant("row_means.cu", name, constants)


STARTS = _row_means("row_starts", torch.float32, torch.float32)
VARIANTS = (STARTS, *(_row_means("row_mean", *types) for types in product(ELEMENTS, repeat=2)))


def row_means_work(points: int, rows: int) -> int:
    """Numbers of int32 that `row_means` needs to work with."""
    return sort_work(points) + rows + 1


def row_means(
    device: Device,
    x: Tensor,
    row_of_point: Tensor,
    count: Tensor,
    y: Tensor,
    rows: Tensor,
    work: Tensor,
    *,
    first_only: bool = False,
    padding: int = 0,
) -> None:
    """Launch y[row] = mean of x over the points of the row, or x of its first point; zeros for a row without points.

    x             [points, channels], any float type
    row_of_point  int32 [points], -1 for a point that belongs to no row
    count, rows   int32 [1], points and rows in use
    y             [capacity, channels], any float type; sums are fp32
    work          int32 [row_means_work(points, capacity)]
    padding       so many elements after each row of y become 0
    """
    points, capacity, width = len(row_of_point), len(y), y.shape[1] + padding
    bits = capacity.bit_length()  # -1 has more, and comes last
    keys, order = sort(device, row_of_point, count, bits, work[: sort_work(points)])
    starts = work[sort_work(points) :]
    device.kernel(STARTS)((blocks(points + 1, THREADS), 1, 1), (THREADS, 1, 1), keys, count, rows, starts)
    block = row_block(width)
    device.kernel(_row_means("row_mean", x.dtype, y.dtype))(
        (blocks(capacity, block[1]), 1, 1),
        block,
        *(x, x.stride(0), order, starts, rows, int(first_only), y, y.stride(0), width, y.shape[1]),
    )


def row_block(channels: int) -> tuple[int, int, int]:
    """Shape of a block of 256 threads that takes several rows: the first axis goes along the channels."""
    across = min(32, 1 << max(0, channels - 1).bit_length())
    return (across, THREADS // across, 1)
