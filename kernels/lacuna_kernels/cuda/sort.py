"""Launches of src/sort.cu: a stable radix sort of int32, of as many keys as the device counted."""

from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.scan import blocks, exclusive_scan, scan_work

COUNT, MOVE = Variant("sort.cu", "sort_count"), Variant("sort.cu", "sort_move")
VARIANTS = (COUNT, MOVE)

THREADS = 256
TILE = 8 * THREADS
DIGIT_BITS = 9
FEW_TILES = 128
"""So many are added up by every block, which takes less than the three launches of a scan."""


def sort_work(length: int) -> int:
    """Numbers of int32 that sorting so many keys needs to work with."""
    counts = (1 << DIGIT_BITS) * blocks(length, TILE)
    return 4 * length + counts + scan_work(counts)


def sort(device: Device, keys: Tensor, count: Tensor, bits: int, work: Tensor) -> tuple[Tensor, Tensor]:
    """Launch a stable sort; returns (keys int32, where each was int32), parts of `work`.

    keys   int32 [n], compared by no fewer than their lowest `bits` bits; -1 comes last if others are under 2^bits - 1
    count  int32 [1], keys in use
    work   int32 [sort_work(n)]
    """
    length, tiles = len(keys), blocks(len(keys), TILE)
    *pairs, counts, sums = work.tensor_split([*(i * length for i in range(1, 5)), 4 * length + (tiles << DIGIT_BITS)])
    grid, block, scanned = (tiles, 1, 1), (THREADS, 1, 1), int(tiles > FEW_TILES)
    order: Tensor | None = None
    digit = blocks(bits, blocks(bits, DIGIT_BITS))  # as few passes as may be, of about as many bits each
    for turn, shift in enumerate(range(0, bits, digit)):
        keys_out, order_out = pairs[turn % 2 * 2], pairs[turn % 2 * 2 + 1]
        device.kernel(COUNT)(grid, block, keys, count, shift, digit, scanned, counts)
        if scanned:
            exclusive_scan(device, counts, counts, None, sums)
        device.kernel(MOVE)(grid, block, keys, order, count, shift, digit, scanned, counts, keys_out, order_out)
        keys, order = keys_out, order_out
    assert order is not None
    return keys, order
