"""Kernel maps on the device: which input row every output row reads through every offset."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.coordinates import SiteBuffer
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.key_order import Ordering, all_of, key_bins, order_by_keys, order_work, row_blocks
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
BLOCKS = 4
"""Of a multiprocessor: blocks take turns, as there is room for many more rows than there are."""
WORD_BITS = 32
_SITE_THREADS = {NEAR: 4, BLOCK: 1, CELL: 1}
"""How many an output has, where it is not one for each offset."""


@dataclass(frozen=True, slots=True)
class KernelMap:
    """A kernel map, its output rows in an order of its own; places at or past their count mean nothing.

    The offsets may be in parts, each with its own order. All rows are in that of the last part; in those of others the
    rows that have any of its offsets come last, and of those before them only some are told, which fill up 256 places.

    rows     int32 [k, capacity], the input row of each offset and place, -1 for none; nothing is told of offsets that
             none of 256 places has
    order    int32 [parts, capacity], the output row of each place
    present  int32 [parts, ceil(capacity / 64), ceil(k / 32)]: bit k % 32 of word k / 32 tells whether any of 64 places
             has it
    keys     int32 [capacity], what output rows are sorted by, many of them region by region: of several parts, byte p
             is 0 if the row has no offset of part p
    ones     int32 [parts], if there are several: the place of the first row whose byte is not 0
    tiles    int32 [2, parts * ceil(capacity / 64)] if it is told in which order tiles are made: of 64 places, then of
             128, each part << 26 | place / 64 of the first
    """

    rows: Tensor
    order: Tensor
    present: Tensor
    keys: Tensor
    ones: Tensor
    tiles: Tensor | None = None

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


def map_work(volume: int, capacity: int, parts: int = 1, regions: int = 1) -> int:
    """Numbers of int32 that making a map needs to work with."""
    pitch, order = _pitch(volume), order_work(capacity, key_bins(key_bits(volume), parts, regions), parts)
    return capacity * (pitch + blocks(pitch, WORD_BITS)) + order


@dataclass(frozen=True, slots=True)
class MapJob:
    """A map to be made.

    inputs    sites that are read from
    outputs   sites that read: the inputs if the convolution is submanifold
    offsets   those of the convolution
    result    where it goes
    work      int32 [map_work(k, outputs.capacity, parts, regions)]
    backward  whether it leads back from the coarse sites of a strided convolution, the inputs, to its fine ones, or
              from the inputs of a generative one to its outputs
    regions   into how many of rows side by side the outputs may be divided, each in an order of its own
    """

    inputs: SiteBuffer
    outputs: SiteBuffer
    offsets: Offsets
    result: KernelMap
    work: Tensor
    backward: bool = False
    regions: int = 1

    @property
    def kernel(self) -> Variant:
        """What finds the rows that each output reads."""
        if self.backward:
            return CELL if self.offsets.halves else INVERSE
        return BLOCK if self.offsets.halves else NEAR if self.offsets.near else FORWARD

    @property
    def found(self) -> tuple[Tensor, Tensor, Tensor]:
        """What each output reads before it is in order, by which slots, and what the order is made with.

        The first two are int32 [capacity, pitch] and, bit by bit, int32 [capacity * ceil(pitch / 32)]: the bits lie
        last, as the others are read by 16 bytes.
        """
        volume, capacity = self.result.rows.shape
        pitch = _pitch(volume)
        ends = [capacity * pitch, len(self.work) - capacity * blocks(pitch, WORD_BITS)]
        rows, work, masks = self.work.tensor_split(ends)
        return rows.view(capacity, -1), masks, work

    @property
    def ordering(self) -> Ordering:
        """How the outputs are put in order."""
        (_, _, work), m = self.found, self.result
        bins = key_bins(key_bits(len(m.rows)), m.parts, self.regions)
        return Ordering(m.keys, self.outputs.count, m.order, m.ones, bins, work)

    @property
    def packed(self) -> bytes:
        """`struct Ordering` of src/ordering.cuh."""
        (rows, masks, _), m = self.found, self.result
        given = (rows, masks, self.offsets.slots, m.rows, m.present)
        return self.ordering.packed(given, rows.shape[1], len(m.rows), close=self.kernel is NEAR)


def make_maps(device: Device, jobs: Sequence[MapJob]) -> None:
    """Launch the making of up to MOST_ORDERINGS maps, side by side."""
    if not jobs:
        return
    device.at_once([partial(_find, device, job) for job in jobs])
    packed = all_of([job.packed for job in jobs])
    order_by_keys(device, [job.ordering for job in jobs], packed)
    results = [job.result for job in jobs]
    groups = blocks(max(m.present.shape[1] for m in results), THREADS // GROUP)
    turns = max(max(m.parts, m.present.shape[2]) for m in results)  # blocks of parts, or of words, take them
    grid = (turns * max(1, 2 * row_blocks(device, len(jobs), groups) // turns), len(jobs), 1)
    device.kernel(ORDER)(grid, (THREADS, 1, 1), packed)


def _find(device: Device, job: MapJob) -> None:
    (rows, masks, _), find, outputs, ordering = job.found, job.kernel, job.outputs, job.ordering
    capacity, pitch = rows.shape
    threads = capacity * _SITE_THREADS.get(find, min(pitch, WORD_BITS))
    device.kernel(find)(
        (min(device.limits.multiprocessors * BLOCKS, blocks(threads, THREADS)), 1, 1),
        (THREADS, 1, 1),
        *(outputs.coordinates, outputs.count, job.offsets.packed, job.offsets.slots, job.result.parts),
        *(rows, pitch, masks, job.result.keys, ordering.work, ordering.bins, *job.inputs.found_by),
    )


def _pitch(volume: int) -> int:
    return 8 if volume <= 8 else 16 if volume <= 16 else blocks(volume, WORD_BITS) * WORD_BITS
