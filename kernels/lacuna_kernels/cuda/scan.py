"""Launches of src/scan.cu: the exclusive running sum of int32, of as many values as the device counted."""

from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device

TILE_SUMS, SUMS, TILES = (Variant("scan.cu", name) for name in ("scan_tile_sums", "scan_sums", "scan_tiles"))
VARIANTS = (TILE_SUMS, SUMS, TILES)

THREADS = 256
TILE = 4 * THREADS
WIDE = 1024


def scan_work(length: int) -> int:
    """Numbers of int32 that `exclusive_scan` needs to work with."""
    return blocks(length, TILE)


def exclusive_scan(
    device: Device,
    values: Tensor,
    running: Tensor,
    count: Tensor | None,
    work: Tensor,
    total: tuple[Tensor, int, Tensor] | None = None,
) -> None:
    """Launch running[i] = values[0] + ... + values[i - 1].

    values, running  int32 [n], n at least 1; may be one tensor
    count            int32 [1]: only so many values count; None for all
    work             int32 [scan_work(n)]
    total            (sum int32 [1], limit, flag int32 [1]): where the sum of all goes, at most the limit; the flag
                     becomes 1 if it is more
    """
    length = len(values)
    grid = (blocks(length, TILE), 1, 1)
    result, limit, overflow = total or (None, 0, None)
    few = grid[0] <= THREADS
    device.kernel(TILE_SUMS)(grid, (THREADS, 1, 1), values, count, length, work)
    if not few:
        device.kernel(SUMS)((1, 1, 1), (WIDE, 1, 1), count, length, work, result, limit, overflow)
    told = (result, limit, overflow) if few else (None, 0, None)
    device.kernel(TILES)(grid, (THREADS, 1, 1), values, count, length, work, int(few), running, *told)


def blocks(things: int, per_block: int) -> int:
    """How many blocks a launch needs."""
    return -(-things // per_block)
