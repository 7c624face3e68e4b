"""Launches of src/sort.cu: a stable radix sort of int32, of as many keys as the device counted."""

from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.scan import blocks, exclusive_scan, scan_work

COUNT, MOVE = Variant("sort.cu", "sort_count"), Variant("sort.cu", "sort_move")
VARIANTS = (COUNT, MOVE)

THREADS = 256
TILE = 8 * THREADS
DIGIT_BITS = 8
FEW_TILES = 128
"""So many are added up by every block, which takes less than the three launches of a scan."""


def sort_work(length: int) -> int:
    """Numbers of int32 that sorting so many keys needs to work with."""
    return 4 * length + _counts_work(length, 1)


def sort_by_digits_work(length: int, digits: int) -> int:
    """Numbers of int32 that sorting so many keys by so many digits needs to work with."""
    return _counts_work(length, digits)


def _counts_work(length: int, sorts: int) -> int:
    counts = sorts * (1 << DIGIT_BITS) * blocks(length, TILE)
    return counts + scan_work(counts)


def sort(device: Device, keys: Tensor, count: Tensor, bits: int, work: Tensor) -> tuple[Tensor, Tensor]:
    """Launch a stable sort; returns (keys int32, where each was int32), parts of `work`.

    keys   int32 [n], compared by no fewer than their lowest `bits` bits; -1 comes last if others are under 2^bits - 1
    count  int32 [1], keys in use
    work   int32 [sort_work(n)]
    """
    length = len(keys)
    pairs = [work[i * length : (i + 1) * length] for i in range(4)]
    order: Tensor | None = None
    for turn, shift in enumerate(range(0, bits, DIGIT_BITS)):
        keys_out, order_out = pairs[turn % 2 * 2], pairs[turn % 2 * 2 + 1]
        _pass(device, keys, order, count, shift, 1, work[4 * length :], keys_out, order_out)
        keys, order = keys_out, order_out
    assert order is not None
    return keys, order


def sort_by_digits(device: Device, keys: Tensor, count: Tensor, order: Tensor, ones: Tensor, work: Tensor) -> None:
    """Launch a stable sort by each of the lowest digits of 8 bits, side by side.

    keys   int32 [n]
    count  int32 [1], keys in use
    order  int32 [digits, n] becomes where each key was, by each digit
    ones   int32 [digits] becomes the place of the first whose digit is not 0, if there are any keys
    work   int32 [sort_by_digits_work(n, digits)]
    """
    _pass(device, keys, None, count, 0, len(order), work, None, order, ones)


def _pass(
    device: Device,
    keys: Tensor,
    values: Tensor | None,
    count: Tensor,
    shift: int,
    sorts: int,
    work: Tensor,
    keys_out: Tensor | None,
    values_out: Tensor,
    ones: Tensor | None = None,
) -> None:
    length = len(keys)
    tiles = blocks(length, TILE)
    counts, sums = work.tensor_split([sorts * (1 << DIGIT_BITS) * tiles])
    grid, block, scanned = (tiles, sorts, 1), (THREADS, 1, 1), int(tiles > FEW_TILES)
    device.kernel(COUNT)(grid, block, keys, count, shift, scanned, counts)
    if scanned:
        exclusive_scan(device, counts, counts, None, sums)
    moved = (keys_out, values_out, length, ones)
    device.kernel(MOVE)(grid, block, keys, values, count, shift, scanned, counts, *moved)
