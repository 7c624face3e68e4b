"""Launches of src/key_order.cu: rows in the order of small keys, by counting, several sets of rows at a time."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, Struct
from lacuna_kernels.cuda.scan import blocks

COUNT, SCAN, PLACE = (Variant("key_order.cu", name) for name in ("count_keys", "scan_bins", "place_rows"))
VARIANTS = (COUNT, SCAN, PLACE)

KEY_BITS, PART_BITS = 16, 8
"""Of a key at most, and of each part of one that has several."""
MOST_ORDERINGS = 12
"""At a time."""
_THREADS, _WIDE, _FEW_BINS = 256, 1024, 768
_FORMAT = "12Q6i"


@dataclass(frozen=True, slots=True)
class Ordering:
    """Rows to be put in the order of their keys, region by region; those with equal keys come in any order.

    keys   int32 [n], of as many bits as `key_bins` was asked for, or of several parts, which are digits of 8 bits
    count  int32 [1], keys in use
    order  int32 [parts, n] becomes the row at each place, by each part
    ones   int32 [parts] becomes the first place of a row with a part that is not 0, if there are several
    bins   from `key_bins`, which says how many regions there may be
    work   int32 [order_work(n, bins, parts)], the first `bins` of them 0
    """

    keys: Tensor
    count: Tensor
    order: Tensor
    ones: Tensor
    bins: int
    work: Tensor

    def packed(self, of_map: Sequence[Tensor] = (), pitch: int = 0, volume: int = 0, *, close: bool = False) -> bytes:
        """`struct Ordering` of src/ordering.cuh. of_map: rows, masks, slots, map and present, if a map is ordered."""
        parts, length = self.order.shape
        counts, starts, ranks = self.work.tensor_split([self.bins, 2 * self.bins])
        pointers = [
            t.data_ptr() for t in (self.keys, self.count, counts, starts, ranks, self.order, self.ones, *of_map)
        ]
        more = [0] * (12 - len(pointers))
        return struct.pack(_FORMAT, *pointers, *more, parts, length, self.bins, pitch, volume, int(close))


def all_of(packed: Sequence[bytes]) -> Struct:
    """`struct Orderings` of src/ordering.cuh, of up to MOST_ORDERINGS."""
    assert len(packed) <= MOST_ORDERINGS
    return Struct(b"".join(packed).ljust(MOST_ORDERINGS * struct.calcsize(_FORMAT), b"\0"))


def key_bins(bits: int, parts: int, regions: int = 1) -> int:
    """Bins to count keys by: as many as there are keys of so many bits in each region, or in each of several parts.

    regions  into how many the rows may be cut, by keys of KEY_BITS in one part: each is put in order by itself
    """
    assert regions == 1 or (parts == 1 and bits == KEY_BITS)
    return max(4, regions << bits) if parts == 1 else parts << PART_BITS


def order_work(length: int, bins: int, parts: int) -> int:
    """Numbers of int32 that ordering needs to work with, the first `bins` of them 0."""
    return 2 * bins + parts * length


def order_by_keys(device: Device, orderings: Sequence[Ordering], packed: Struct) -> None:
    """Launch the ordering of each; `packed` is `all_of` them."""
    length, bins = max(len(o.keys) for o in orderings), max(o.bins for o in orderings)
    grid, block = (row_blocks(device, len(orderings), blocks(length, _THREADS)), len(orderings), 1), (_THREADS, 1, 1)
    device.kernel(COUNT)(grid, block, packed)
    if bins > _FEW_BINS:
        device.kernel(SCAN)((blocks(bins, 4 * _WIDE), len(orderings), 1), (_WIDE, 1, 1), packed)
    device.kernel(PLACE)(grid, block, packed)


def row_blocks(device: Device, orderings: int, most: int) -> int:
    """Blocks for each of so many, which take turns, as there is room for many more rows than there are."""
    return max(1, min(most, device.limits.multiprocessors * (2 if orderings <= 2 else 1)))
