"""Kernel maps on the device: which input row every output row reads through every offset."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.coordinates import SiteBuffer
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.key_order import key_bins, order_by_keys, order_work
from lacuna_kernels.cuda.offset_slots import key_bits
from lacuna_kernels.cuda.scan import blocks
from lacuna_kernels.types import Geometry

NEAR, BLOCK, FORWARD, CELL, INVERSE, ORDER = (
    Variant("kernel_map.cu", name)
    for name in ("near_rows", "block_rows", "forward_rows", "cell_rows", "inverse_rows", "order_map")
)
VARIANTS = (NEAR, BLOCK, FORWARD, CELL, INVERSE, ORDER)

GROUP = 64
THREADS = 256
BLOCKS, ORDERING_BLOCKS = 3, 4
"""Of a multiprocessor: blocks take turns, as there is room for many more rows than there are. More of those that look
rows up would leave no room for what is made beside them."""
WORD_BITS = 32
_SITE_THREADS = {NEAR: 4, BLOCK: 1, CELL: 1}
"""How many an output has, where it is not one for each offset."""


@dataclass(frozen=True, slots=True)
class KernelMap:
    """A kernel map, its output rows in an order of its own; places at or past their count mean nothing.

    The offsets may be in parts, each with its own order. All rows are in that of the last part; in those of others the
    rows that have any of its offsets come last, and of those before them only some are told, which fill up 256 places.

    rows     int32 [k, capacity], the input row of each offset and place, -1 for none
    order    int32 [parts, capacity], the output row of each place
    present  int32 [parts, ceil(capacity / 64), ceil(k / 32)]: bit k % 32 of word k / 32 tells whether any of 64 places
             has it
    keys     int32 [capacity], what output rows are sorted by: of several parts, byte p is 0 if the row has no offset of
             part p
    ones     int32 [parts], if there are several: the place of the first row whose byte is not 0
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

    geometry  what they are of
    packed    int32 [20], from `pack_geometry`
    slots     int32 [k, 2], from `offset_slots`
    """

    geometry: Geometry
    packed: Tensor
    slots: Tensor

    @property
    def halves(self) -> bool:
        """Whether they are the 8 cells of the blocks by which sites are found."""
        g = self.geometry
        return g.kernel_size == g.stride == (2, 2, 2) and g.padding == (0, 0, 0) and g.dilation == (1, 1, 1)

    @property
    def near(self) -> bool:
        """Whether they lie side by side in up to 2 x 2 x 2 blocks, and are many."""
        g = self.geometry
        return max(g.kernel_size) <= 3 and g.dilation == (1, 1, 1) and _pitch(g.volume) == WORD_BITS


def map_shapes(volume: int, capacity: int, parts: int = 1) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a map, by the names of its fields, in their order."""
    present = (parts, blocks(capacity, GROUP), blocks(volume, WORD_BITS))
    shapes = {"rows": (volume, capacity), "order": (parts, capacity), "present": present}
    return {**shapes, "keys": (capacity,), "ones": (parts,)}


def map_work(volume: int, capacity: int, parts: int = 1) -> int:
    """Numbers of int32 that making a map needs to work with."""
    return capacity * _pitch(volume) + order_work(capacity, key_bins(key_bits(volume), parts), parts)


def forward_map(
    device: Device, inputs: SiteBuffer, outputs: SiteBuffer, offsets: Offsets, result: KernelMap, work: Tensor
) -> None:
    """Launch the map of a submanifold (inputs are the outputs) or strided convolution.

    work  int32 [map_work(k, outputs.capacity, parts)]
    """
    _launch(
        device, BLOCK if offsets.halves else NEAR if offsets.near else FORWARD, inputs, outputs, offsets, result, work
    )


def inverse_map(
    device: Device, coarse: SiteBuffer, fine: SiteBuffer, offsets: Offsets, result: KernelMap, work: Tensor
) -> None:
    """Launch the map that leads back from the coarse sites of a strided convolution to its fine ones.

    A generative convolution leads from its inputs, the coarse sites, to its outputs in the same way. See `forward_map`.

    offsets  those of the strided or generative convolution
    """
    _launch(device, CELL if offsets.halves else INVERSE, coarse, fine, offsets, result, work)


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
    pitch, bins = _pitch(volume), key_bins(key_bits(volume), parts)
    rows, ordering = work.tensor_split([capacity * pitch])
    threads, block = capacity * _SITE_THREADS.get(find, min(pitch, WORD_BITS)), (THREADS, 1, 1)
    device.kernel(find)(
        (min(device.limits.multiprocessors * BLOCKS, blocks(threads, THREADS)), 1, 1),
        block,
        *(outputs.coordinates, outputs.count, offsets.packed, offsets.slots, parts),
        *(rows, pitch, result.keys, ordering, bins, *inputs.found_by),
    )
    order_by_keys(device, result.keys, outputs.count, result.order, result.ones, bins, ordering)
    _, groups, words = result.present.shape
    most = device.limits.multiprocessors * ORDERING_BLOCKS
    device.kernel(ORDER)(
        (min(most, blocks(groups, THREADS // GROUP)), words if parts == 1 else parts, 1),
        block,
        *(rows, pitch, offsets.slots, volume, parts, outputs.count, result.order, result.ones),
        *(result.rows, capacity, result.present),
    )


def _pitch(volume: int) -> int:
    return 8 if volume <= 8 else 16 if volume <= 16 else blocks(volume, WORD_BITS) * WORD_BITS
