"""Launches of src/tile_order.cu: in which order convolutions make their tiles, for several kernel maps at a time."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, Struct
from lacuna_kernels.cuda.kernel_map import GROUP
from lacuna_kernels.cuda.scan import blocks

ORDER = Variant("tile_order.cu", "order_tiles")
VARIANTS = (ORDER,)

TILE_SIZES = (GROUP, 2 * GROUP)
MOST_MAPS = 12
"""At a time."""
_THREADS = 1024
_FORMAT = "4Q3i4x"


def tiles_shape(capacity: int, parts: int = 1) -> tuple[int, int]:
    """Shape of the tiles of a map, int32: see KernelMap."""
    return len(TILE_SIZES), parts * blocks(capacity, GROUP)


@dataclass(frozen=True, slots=True)
class TileOrder:
    """The tiles of a kernel map, to be put in order: see KernelMap.

    tiles  int32 [tiles_shape(capacity, parts)], of the map's capacity
    count  int32 [1], output rows in use
    """

    present: Tensor
    ones: Tensor
    tiles: Tensor
    count: Tensor

    @property
    def packed(self) -> bytes:
        """`struct TileOrder` of src/tile_order.cu."""
        parts, groups, words = self.present.shape
        assert self.tiles.shape == (len(TILE_SIZES), parts * groups)
        pointers = [given.data_ptr() for given in (self.present, self.count, self.ones, self.tiles)]
        return struct.pack(_FORMAT, *pointers, parts, groups, words)


def order_tiles(device: Device, orders: Sequence[TileOrder]) -> None:
    """Launch what puts the tiles of up to MOST_MAPS maps in order."""
    assert len(orders) <= MOST_MAPS
    if not orders:
        return
    packed = b"".join(order.packed for order in orders).ljust(MOST_MAPS * struct.calcsize(_FORMAT), b"\0")
    device.kernel(ORDER)((len(TILE_SIZES), len(orders), 1), (_THREADS, 1, 1), Struct(packed))
