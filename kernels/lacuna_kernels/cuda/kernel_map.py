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
from lacuna_kernels.cuda.sort import DIGIT_BITS, sort, sort_work
from lacuna_kernels.types import Geometry

FORWARD, INVERSE, ORDER = (Variant("kernel_map.cu", name) for name in ("forward_rows", "inverse_rows", "order_map"))
VARIANTS = (FORWARD, INVERSE, ORDER)

GROUP = 64
THREADS = 256
BLOCKS = 6
"""Of a multiprocessor: those that look rows up take turns, as there is room for many more rows than there are."""
WORD_BITS = 32
KEY_BITS = 2 * DIGIT_BITS
"""Of what rows are sorted by: one for each of 27 offsets would be two more passes, for 2 to 5 % fewer products."""


@dataclass(frozen=True, slots=True)
class KernelMap:
    """A kernel map, its output rows in an order of its own; places at or past their count mean nothing.

    rows     int32 [k, capacity], the input row of each offset and place, -1 for none
    order    int32 [capacity], the output row of each place
    present  int32 [ceil(capacity / 64), ceil(k / 32)]: bit k % 32 of word k / 32 tells whether any of 64 places has it
    """

    rows: Tensor
    order: Tensor
    present: Tensor

    @classmethod
    def made(cls, volume: int, capacity: int, tensor: Callable[..., Tensor]) -> "KernelMap":
        """Room for a map, by what makes int32 of a shape."""
        return cls(*(tensor(*shape) for shape in map_shapes(volume, capacity).values()))


@dataclass(frozen=True, slots=True)
class Offsets:
    """Where a convolution reads, on the device.

    geometry  int32 [17], from `pack_geometry`
    bits      int32 [k], from `offset_bits`
    """

    geometry: Tensor
    bits: Tensor


def map_shapes(volume: int, capacity: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a map, by the names of its fields, in their order."""
    present = (blocks(capacity, GROUP), blocks(volume, WORD_BITS))
    return {"rows": (volume, capacity), "order": (capacity,), "present": present}


def map_work(volume: int, capacity: int) -> int:
    """Numbers of int32 that making a map needs to work with."""
    return capacity * (_pitch(volume) + 1) + sort_work(capacity)


def offset_bits(geometry: Geometry) -> Tensor:
    """Which bit of a row's key each offset sets: int32 [k].

    The furthest from the middle of the kernel, which the fewest rows have, set the highest; a bit is for several
    neighbours in that order if there are more offsets than bits. The middle of a submanifold convolution, which all
    rows have, sets none: -1.
    """
    sizes = geometry.kernel_size
    offsets = [*product(*map(range, sizes))]
    distances = [sum((2 * at + 1 - size) ** 2 for at, size in zip(each, sizes, strict=True)) for each in offsets]
    telling = [offset for offset in range(len(offsets)) if distances[offset] or not _is_submanifold(geometry)]
    telling.sort(key=lambda offset: distances[offset])
    bits = torch.full((len(offsets),), -1, dtype=torch.int32)
    bits[telling] = torch.arange(len(telling), dtype=torch.int32) * _key_bits(len(offsets)) // max(1, len(telling))
    return bits


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
    volume, capacity = result.rows.shape
    pitch = _pitch(volume)
    rows, keys, sorting = torch.split(work, [capacity * pitch, capacity, len(work) - capacity * (pitch + 1)])
    at_work = device.limits.multiprocessors * BLOCKS
    device.kernel(find)(
        (min(at_work, blocks(capacity * min(pitch, WORD_BITS), THREADS)), 1, 1),
        (THREADS, 1, 1),
        *(outputs.coordinates, outputs.count, offsets.geometry, offsets.bits),
        *(inputs.coordinates, inputs.table, inputs.mask, rows, pitch, keys),
    )
    _, by_key = sort(device, keys, outputs.count, _key_bits(volume), sorting)
    groups, words = result.present.shape
    device.kernel(ORDER)(
        (groups, words, 1),
        (THREADS, 1, 1),
        *(rows, pitch, volume, outputs.count, by_key, result.order, result.rows, capacity, result.present),
    )


def _pitch(volume: int) -> int:
    return 8 if volume <= 8 else 16 if volume <= 16 else blocks(volume, WORD_BITS) * WORD_BITS


def _key_bits(volume: int) -> int:
    return min(volume, KEY_BITS)
