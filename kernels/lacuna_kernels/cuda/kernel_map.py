"""Kernel maps on the device: which input row every output row reads through every offset."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.coordinates import SiteBuffer
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.scan import blocks
from lacuna_kernels.cuda.sort import DIGIT_BITS, sort, sort_by_digits, sort_by_digits_work, sort_work
from lacuna_kernels.types import Geometry

FORWARD, INVERSE, ORDER = (Variant("kernel_map.cu", name) for name in ("forward_rows", "inverse_rows", "order_map"))
VARIANTS = (FORWARD, INVERSE, ORDER)

GROUP = 64
THREADS = 256
BLOCKS = 5
"""Of a multiprocessor: those that look rows up take turns, as there is room for many more rows than there are."""
WORD_BITS = 32
KEY_BITS = 2 * DIGIT_BITS
"""Of what rows are sorted by: one for each of 27 offsets would be two more passes, for 2 to 5 % fewer products."""


@dataclass(frozen=True, slots=True)
class KernelMap:
    """A kernel map, its output rows in an order of its own; places at or past their count mean nothing.

    The offsets may be in parts, each with its own order. All rows are in that of the last part; in those of others the
    rows that have any of its offsets come last, and of those before them only some are told, which fill up 256 places.

    rows     int32 [k, capacity], the input row of each offset and place, -1 for none
    order    int32 [parts, capacity], the output row of each place
    present  int32 [parts, ceil(capacity / 64), ceil(k / 32)]: bit k % 32 of word k / 32 tells whether any of 64 places
             has it
    keys     int32 [capacity], if there are several parts: byte p of an output row is 0 if it has no offset of part p
    ones     int32 [parts], if there are several: the place of the first row that has any, of all but the last part
    """

    rows: Tensor
    order: Tensor
    present: Tensor
    keys: Tensor
    ones: Tensor

    @classmethod
    def made(cls, volume: int, capacity: int, tensor: Callable[..., Tensor], parts: int = 1) -> "KernelMap":
        """Room for a map, by what makes int32 of a shape."""
        return cls(*(tensor(*shape) for shape in map_shapes(volume, capacity, parts).values()))

    @property
    def parts(self) -> int:
        """Into how many the offsets are divided."""
        return len(self.order)


@dataclass(frozen=True, slots=True)
class Offsets:
    """Where a convolution reads, on the device.

    geometry  int32 [17], from `pack_geometry`
    slots     int32 [k, 2], from `offset_slots`
    """

    geometry: Tensor
    slots: Tensor


def map_shapes(volume: int, capacity: int, parts: int = 1) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a map, by the names of its fields, in their order."""
    present = (parts, blocks(capacity, GROUP), blocks(volume, WORD_BITS))
    shapes = {"rows": (volume, capacity), "order": (parts, capacity), "present": present}
    return {**shapes, "keys": (capacity,), "ones": (parts,)}


def map_work(volume: int, capacity: int) -> int:
    """Numbers of int32 that making a map needs to work with."""
    return capacity * _pitch(volume) + max(sort_work(capacity), sort_by_digits_work(capacity, PARTS))


PARTS, _COARSE = 3, 8


def parts_of(geometry: Geometry, stride: int) -> int:
    """Into how many parts the offsets of a forward map are divided: planes along z of 27, on coarse levels.

    Of a LiDAR scan not all sites have others above or below them, and those that do are sorted by those alone: tiles of
    128 rows work through 1.1 to 1.4 times the products that are there instead of 1.9 to 2.1 times. They are more tiles,
    which pays where there are many channels and few rows: at strides from 8 on (see README.md).

    stride  of the output sites, the largest of its axes
    """
    planes = geometry.kernel_size == (PARTS,) * 3 and not geometry.generative
    return PARTS if planes and stride >= _COARSE else 1


def offset_slots(geometry: Geometry, parts: int = 1) -> Tensor:
    """The offsets part by part, and which bit of a row's key each sets, -1 for none: int32 [k, 2].

    Of several parts, planes along z, the middle one comes last. Of each those furthest from the middle of the kernel,
    which the fewest rows have, set the highest bits; a bit is for several neighbours in that order if there are more
    offsets than bits. The middle of a submanifold convolution, which all rows have, sets none.
    """
    sizes = geometry.kernel_size
    planes = (
        [range(sizes[2])] if parts == 1 else [[z] for z in range(sizes[2]) if z != sizes[2] // 2] + [[sizes[2] // 2]]
    )
    slots = []
    for part, plane in enumerate(planes):
        offsets = [(x, y, z) for x, y in product(range(sizes[0]), range(sizes[1])) for z in plane]
        distances = [sum((2 * at + 1 - size) ** 2 for at, size in zip(each, sizes, strict=True)) for each in offsets]
        telling = [at for at in range(len(offsets)) if distances[at] or not _is_submanifold(geometry)]
        telling.sort(key=distances.__getitem__)
        most = _key_bits(len(offsets)) if parts == 1 else DIGIT_BITS
        bits = dict.fromkeys(range(len(offsets)), -1)
        for rank, at in enumerate(telling):
            bits[at] = DIGIT_BITS * part + rank * min(most, len(offsets)) // len(telling)
        numbers = [(x * sizes[1] + y) * sizes[2] + z for x, y, z in offsets]
        slots += [[number, bits[at]] for at, number in enumerate(numbers)]
    return torch.tensor(slots, dtype=torch.int32)


def _is_submanifold(g: Geometry) -> bool:
    middles = (2 * p == (k - 1) * d for k, p, d in zip(g.kernel_size, g.padding, g.dilation, strict=True))
    return g.stride == (1, 1, 1) and all(middles) and not g.generative


def forward_map(
    device: Device, inputs: SiteBuffer, outputs: SiteBuffer, offsets: Offsets, result: KernelMap, work: Tensor
) -> None:
    """Launch the map of a submanifold (inputs are the outputs) or strided convolution.

    work  int32 [map_work(k, outputs.capacity)]
    """
    _launch(device, FORWARD, inputs, outputs, offsets, result, work)


def inverse_map(
    device: Device, coarse: SiteBuffer, fine: SiteBuffer, offsets: Offsets, result: KernelMap, work: Tensor
) -> None:
    """Launch the map that leads back from the coarse sites of a strided convolution to its fine ones.

    A generative convolution leads from its inputs, the coarse sites, to its outputs in the same way. See `forward_map`.

    offsets  those of the strided or generative convolution
    """
    _launch(device, INVERSE, coarse, fine, offsets, result, work)


def _launch(
    device: Device,
    find: Variant,
    inputs: SiteBuffer,
    outputs: SiteBuffer,
    offsets: Offsets,
    result: KernelMap,
    work: Tensor,
) -> None:
    (volume, capacity), parts = result.rows.shape, result.parts
    pitch = _pitch(volume)
    rows, sorting = work.tensor_split([capacity * pitch])
    at_work = device.limits.multiprocessors * BLOCKS
    device.kernel(find)(
        (min(at_work, blocks(capacity * min(pitch, WORD_BITS), THREADS)), 1, 1),
        (THREADS, 1, 1),
        *(outputs.coordinates, outputs.count, offsets.geometry, offsets.slots, parts),
        *(inputs.coordinates, inputs.table, inputs.mask, rows, pitch, result.keys),
    )
    if parts == 1:
        _, by_key = sort(device, result.keys, outputs.count, _key_bits(volume), sorting)
        ordered: tuple[Tensor | None, ...] = (by_key, None, result.order)
    else:
        sort_by_digits(device, result.keys, outputs.count, result.order, result.ones, sorting)
        ordered = (result.order, result.ones, None)
    _, groups, words = result.present.shape
    device.kernel(ORDER)(
        (groups, words if parts == 1 else parts, 1),
        (THREADS, 1, 1),
        *(rows, pitch, offsets.slots, volume, parts, outputs.count, *ordered),
        *(result.rows, capacity, result.present),
    )


def _pitch(volume: int) -> int:
    return 8 if volume <= 8 else 16 if volume <= 16 else blocks(volume, WORD_BITS) * WORD_BITS


def _key_bits(volume: int) -> int:
    return min(volume, KEY_BITS)
