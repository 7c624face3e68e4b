"""Launches of src/row_means.cu: the mean of the points of each row, added in their order."""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.scan import blocks

THREADS = 256


def _row_means(name: str, source: torch.dtype, result: torch.dtype) -> Variant:
    constants = (("ELEMENT_IN", ELEMENTS[source]), ("ELEMENT_OUT", ELEMENTS[result]))
    return Variant("row_means.cu", name, constants)


COUNT, START, LIST, ORDER = (
    _row_means(name, torch.float32, torch.float32)
    for name in ("count_points", "start_rows", "list_points", "order_points")
)
VARIANTS = (COUNT, START, LIST, ORDER, *(_row_means("row_mean", *types) for types in product(ELEMENTS, repeat=2)))


def row_means_work(points: int, rows: int) -> int:
    """Numbers of int32 that `row_means` needs to work with."""
    return 2 * rows + 1 + 2 * points


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
    width, shape = y.shape[1] + padding, row_block(y.shape[1] + padding)
    points = list_points(device, row_of_point, count, rows, len(y), work)
    device.kernel(_row_means("row_mean", x.dtype, y.dtype))(
        (blocks(len(y), shape[1]), 1, 1),
        shape,
        *(x, x.stride(0), points.order, points.starts, points.counts, rows, int(first_only)),
        *(y, y.stride(0), width, y.shape[1]),
    )


@dataclass(frozen=True, slots=True)
class PointsOfRows:
    """Which points belong to each row: counts[i] of them, from order[starts[i]] on.

    starts, counts  int32 [capacity]
    order           int32 [points]
    """

    starts: Tensor
    counts: Tensor
    order: Tensor


def list_points(
    device: Device, row_of_point: Tensor, count: Tensor, rows: Tensor, capacity: int, work: Tensor
) -> PointsOfRows:
    """Launch the listing of the points of each row, in their order; in parts of `work`. For the rest see row_means."""
    points = len(row_of_point)
    cleared, starts, ranks, listed = torch.split(work, [capacity + 1, capacity, points, points])
    counts, taken, order = cleared[:capacity], cleared[capacity:], ranks  # which nobody reads any more by then
    cleared.zero_()
    by_point, block = (blocks(points, THREADS), 1, 1), (THREADS, 1, 1)
    device.kernel(COUNT)(by_point, block, row_of_point, count, rows, counts, ranks)
    device.kernel(START)((blocks(capacity, THREADS), 1, 1), block, counts, rows, taken, starts)
    device.kernel(LIST)(by_point, block, row_of_point, count, rows, starts, ranks, listed)
    device.kernel(ORDER)(by_point, block, row_of_point, count, rows, starts, counts, listed, order)
    return PointsOfRows(starts, counts, order)


def row_block(channels: int) -> tuple[int, int, int]:
    """Shape of a block of 256 threads that takes several rows: the first axis goes along the channels."""
    across = min(32, 1 << max(0, channels - 1).bit_length())
    return (across, THREADS // across, 1)
