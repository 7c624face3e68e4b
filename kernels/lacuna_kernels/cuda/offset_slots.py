"""How the offsets of a kernel are divided, and by which of them output rows are sorted."""

from itertools import product

import torch
from torch import Tensor

from lacuna_kernels.cuda.key_order import KEY_BITS, PART_BITS
from lacuna_kernels.types import Geometry, Triple

PARTS = 3
_COARSE = 8
_REGION_ROWS, _MOST_REGIONS = 1 << 17, 8


def parts_of(geometry: Geometry, stride: int, *, dense: bool = False) -> int:
    """Into how many parts the offsets of a forward map are divided: planes along z of 27, on coarse levels.

    Of a LiDAR scan not all sites have others above or below them, and those that do are sorted by those alone: tiles of
    128 rows work through 1.1 to 1.4 times the products that are there instead of 1.9 to 2.1 times. They are more tiles,
    which pays where there are many channels and few rows: at strides from 8 on (see README.md).

    stride  of the output sites, the largest of its axes
    dense   whether most rows have most offsets: then there is nothing to gain by it
    """
    planes = geometry.kernel_size == (PARTS,) * 3 and not geometry.generative
    return PARTS if planes and stride >= _COARSE and not dense else 1


def regions_of(geometry: Geometry, capacity: int, *, dense: bool = False) -> int:
    """Into how many regions the output rows of a map may be divided, rows side by side, each in an order of its own.

    A convolution on a dense level with many sites then reads from one region after another, more of which is in the
    second-level cache; elsewhere tiles would work through too many products more (see README.md).

    capacity  output rows that there is room for
    dense     whether most rows have most offsets
    """
    if not dense or key_bits(geometry.volume) < KEY_BITS:
        return 1
    return max(1, min(_MOST_REGIONS, capacity // _REGION_ROWS))


def key_bits(volume: int) -> int:
    """Bits of what rows are sorted by if the offsets are in one part.

    One for each of 27 offsets would be 2^27 bins to count, for 2 to 5 % fewer products.
    """
    return min(volume, KEY_BITS)


def offset_slots(geometry: Geometry, parts: int = 1, *, dense: bool = False) -> Tensor:
    """The offsets part by part, and which bit of a row's key each sets, -1 for none: int32 [k, 2].

    Of several parts, planes along z, the middle one comes last. Of each those furthest from the middle of the kernel,
    which the fewest rows have, set the highest bits; a bit is for several neighbours in that order if there are more
    offsets than bits. The middle of a submanifold convolution, which all rows have, sets none.

    dense  whether most rows have most offsets: then the furthest have a bit each, and the nearest none; in one part, as
           of several a row that has any offset of a part must have a bit of it
    """
    size_x, size_y, size_z = geometry.kernel_size
    assert parts == 1 or (parts == size_z == PARTS and geometry.volume <= 32)  # a word of a map, a digit a part
    assert parts == 1 or not dense
    middle = size_z // 2
    planes = [[*range(size_z)]] if parts == 1 else [[z] for z in range(size_z) if z != middle] + [[middle]]
    most = key_bits(geometry.volume) if parts == 1 else PART_BITS
    slots = []
    for part, plane in enumerate(planes):
        offsets = [(x, y, z) for x, y in product(range(size_x), range(size_y)) for z in plane]
        bits = _bits(geometry, offsets, most, dense)
        for (x, y, z), bit in zip(offsets, bits, strict=True):
            slots.append([(x * size_y + y) * size_z + z, bit if bit < 0 else PART_BITS * part + bit])
    return torch.tensor(slots, dtype=torch.int32)


def _bits(geometry: Geometry, offsets: list[Triple], most: int, dense: bool) -> list[int]:
    """Which of so many bits each of these offsets sets."""
    distances = [_distance(geometry, offset) for offset in offsets]
    telling = [at for at, distance in enumerate(distances) if distance or not _is_submanifold(geometry)]
    telling.sort(key=distances.__getitem__)
    bits, too_many = [-1] * len(offsets), max(0, len(telling) - most)
    for rank, at in enumerate(telling):
        bits[at] = max(-1, rank - too_many) if dense else rank * min(most, len(offsets)) // len(telling)
    return bits


def _distance(geometry: Geometry, offset: Triple) -> int:
    """From the middle of the kernel, in half steps, squared."""
    return sum((2 * at + 1 - size) ** 2 for at, size in zip(offset, geometry.kernel_size, strict=True))


def _is_submanifold(g: Geometry) -> bool:
    middles = (2 * p == (k - 1) * d for k, p, d in zip(g.kernel_size, g.padding, g.dilation, strict=True))
    return g.stride == (1, 1, 1) and all(middles) and not g.generative
