"""Launches of src/key_order.cu: rows in the order of small keys, by counting."""

from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.scan import blocks

COUNT, SCAN, PLACE = (Variant("key_order.cu", name) for name in ("count_keys", "scan_bins", "place_rows"))
VARIANTS = (COUNT, SCAN, PLACE)

PART_BITS = 8
"""Of a key that has several parts."""
_THREADS, _WIDE, _FEW_BINS = 256, 1024, 768
_BLOCKS = 2
"""Of a multiprocessor."""


def key_bins(bits: int, parts: int) -> int:
    """How many different keys there are: of so many bits, or in each of several parts."""
    return max(4, 1 << bits) if parts == 1 else parts << PART_BITS


def order_work(length: int, bins: int, parts: int) -> int:
    """Numbers of int32 that ordering needs to work with, the first `bins` of them 0."""
    return 2 * bins + parts * length


def order_by_keys(
    device: Device, keys: Tensor, count: Tensor, order: Tensor, ones: Tensor, bins: int, work: Tensor
) -> None:
    """Launch the ordering of rows by their keys; those with equal keys come in any order.

    keys   int32 [n], less than `bins`, or of several parts, which are digits of 8 bits
    count  int32 [1], keys in use
    order  int32 [parts, n] becomes the row at each place, by each part
    ones   int32 [parts] becomes the first place of a row with a part that is not 0, if there are several
    work   int32 [order_work(n, bins, parts)]
    """
    parts, length = order.shape
    counts, starts, ranks = work.tensor_split([bins, 2 * bins])
    most = device.limits.multiprocessors * _BLOCKS
    grid, block = (min(most, blocks(length, _THREADS)), 1, 1), (_THREADS, 1, 1)
    device.kernel(COUNT)(grid, block, keys, count, parts, length, counts, ranks)
    if bins > _FEW_BINS:
        device.kernel(SCAN)((blocks(bins, 4 * _WIDE), 1, 1), (_WIDE, 1, 1), counts, bins, starts)
    first = starts if bins > _FEW_BINS else counts
    device.kernel(PLACE)(grid, block, keys, count, parts, length, first, bins, ranks, order, ones)
