"""Launches of src/sort.cu and src/row_means.cu: the mean of the points of each row, added in their order."""

from itertools import product

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.scan import blocks, exclusive_scan, scan_work

COUNT, MOVE = Variant("sort.cu", "sort_count"), Variant("sort.cu", "sort_move")

THREADS = 256
SORT_TILE = 8 * THREADS
DIGIT_BITS = 8


def _row_means(name: str, source: torch.dtype, result: torch.dtype) -> Variant:
    constants = (("ELEMENT_IN", ELEMENTS[source]), ("ELEMENT_OUT", ELEMENTS[result]))
    return Variant("row_means.cu", name, constants)


STARTS = _row_means("row_starts", torch.float32, torch.float32)
VARIANTS = (COUNT, MOVE, STARTS, *(_row_means("row_mean", *types) for types in product(ELEMENTS, repeat=2)))


def sort_work(points: int) -> int:
    """Numbers of int32 that sorting so many points needs to work with."""
    counts = (1 << DIGIT_BITS) * blocks(points, SORT_TILE)
    return 4 * points + counts + scan_work(counts)


def sort_by_row(device: Device, row_of_point: Tensor, count: Tensor, rows: int, work: Tensor) -> tuple[Tensor, Tensor]:
    """Launch a stable sort of the points by row; returns (rows int32, points int32), parts of `work`.

    row_of_point  int32 [points], each under `rows` or -1; those of -1 come last
    count         int32 [1], points in use
    work          int32 [sort_work(points)]
    """
    points = len(row_of_point)
    tiles = blocks(points, SORT_TILE)
    pairs = [work[i * points : (i + 1) * points] for i in range(4)]
    counts = work[4 * points : 4 * points + (1 << DIGIT_BITS) * tiles]
    sums = work[4 * points + len(counts) :]
    keys: Tensor = row_of_point
    order: Tensor | None = None
    grid, block = (tiles, 1, 1), (THREADS, 1, 1)
    for turn, shift in enumerate(range(0, rows.bit_length(), DIGIT_BITS)):
        keys_out, order_out = pairs[turn % 2 * 2], pairs[turn % 2 * 2 + 1]
        device.kernel(COUNT)(grid, block, keys, count, shift, counts)
        exclusive_scan(device, counts, counts, None, sums)
        device.kernel(MOVE)(grid, block, keys, order, count, shift, counts, keys_out, order_out)
        keys, order = keys_out, order_out
    assert order is not None
    return keys, order


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
) -> None:
    """Launch y[row] = mean of x over the points of the row, or x of its first point; zeros for a row without points.

    x             [points, channels], any float type
    row_of_point  int32 [points], -1 for a point that belongs to no row
    count, rows   int32 [1], points and rows in use
    y             [capacity, channels], any float type; sums are fp32
    work          int32 [row_means_work(points, capacity)]
    """
    points, capacity, channels = len(row_of_point), len(y), y.shape[1]
    keys, order = sort_by_row(device, row_of_point, count, capacity, work[: sort_work(points)])
    starts = work[sort_work(points) :]
    device.kernel(STARTS)((blocks(capacity + 1, THREADS), 1, 1), (THREADS, 1, 1), keys, count, rows, starts)
    block = row_block(channels)
    device.kernel(_row_means("row_mean", x.dtype, y.dtype))(
        (blocks(capacity, block[1]), 1, 1),
        block,
        *(x, x.stride(0), order, starts, rows, int(first_only), y, y.stride(0), channels),
    )


def row_block(channels: int) -> tuple[int, int, int]:
    """Shape of a block of 256 threads that takes several rows: the first axis goes along the channels."""
    across = min(32, 1 << max(0, channels - 1).bit_length())
    return (across, THREADS // across, 1)
