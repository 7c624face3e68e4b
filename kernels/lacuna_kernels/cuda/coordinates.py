"""Sites on the device: their table, those that convolutions make, and where every item begins."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.scan import blocks, exclusive_scan, scan_work
from lacuna_kernels.errors import Unsupported
from lacuna_kernels.types import Geometry, Triple

INSERT, COUNT, NUMBER, OFFSETS = (
    Variant("sites.cu", name) for name in ("insert_outputs", "count_outputs", "number_outputs", "item_offsets")
)
VARIANTS = (INSERT, COUNT, NUMBER, OFFSETS)

THREADS = 256
FREE = -1


@dataclass(frozen=True, slots=True)
class SiteBuffer:
    """The sites of a level, with room for `capacity` of them; rows at or past the count mean nothing.

    coordinates  int32 [capacity, 4], item by item
    count        int32 [1], sites in use
    offsets      int32 [items + 1], where the sites of each item begin
    table        int32 [table_slots(capacity)], finds the row of a site
    """

    coordinates: Tensor
    count: Tensor
    offsets: Tensor
    table: Tensor

    @property
    def capacity(self) -> int:
        """Room for so many sites."""
        return len(self.coordinates)

    @property
    def mask(self) -> int:
        """What a hash is cut off with."""
        return len(self.table) - 1


def table_slots(capacity: int) -> int:
    """Slots of a table: a power of two, so that at most half are ever in use."""
    return 2 << max(0, capacity - 1).bit_length()


def pack_geometry(geometry: Geometry, spatial_shape: Triple | None = None) -> Tensor:
    """`struct Geometry` of src/geometry.cuh: int32 [17]. spatial_shape bounds the output sites."""
    shape = spatial_shape or (-1, -1, -1)
    sizes = (geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation, shape)
    flags = (int(geometry.floor_sites), int(geometry.generative))
    return torch.tensor([*(number for triple in sizes for number in triple), *flags]).int()


def output_work(inputs: int, outputs: int) -> int:
    """Numbers of int32 that `output_sites` needs to work with, for room for so many sites."""
    return table_slots(outputs) + 2 * inputs + scan_work(inputs)


def check_candidates(inputs: int, volume: int) -> None:
    """Raise Unsupported if inputs times offsets cannot be counted in 32 bits."""
    if inputs * volume > torch.iinfo(torch.int32).max:
        raise Unsupported(f"{inputs} sites times {volume} kernel offsets are more than 2^31")


def output_sites(
    device: Device, inputs: SiteBuffer, outputs: SiteBuffer, geometry: Tensor, work: Tensor, overflow: Tensor
) -> None:
    """Launch the making of the output sites of a strided or generative convolution, as ops.sparse_conv.active_sites.

    geometry  int32 [17] on the device, from `pack_geometry`; see `check_candidates`
    work      int32 [output_work(inputs.capacity, outputs.capacity)]
    overflow  int32 [1], becomes 1 if there are more sites than room; which of them are then made is left open, but
              no row lies at or past the room
    """
    n, slots = inputs.capacity, len(outputs.table)
    keys, firsts, before, sums = torch.split(work, [slots, n, n, len(work) - slots - 2 * n])
    keys.fill_(FREE)
    outputs.table.fill_(FREE)
    grid, block = (blocks(n, THREADS), 1, 1), (THREADS, 1, 1)
    given = (inputs.coordinates, inputs.count, geometry, keys, outputs.mask)
    device.kernel(INSERT)(grid, block, *given, overflow)
    device.kernel(COUNT)(grid, block, *given, firsts)
    exclusive_scan(device, firsts, before, inputs.count, sums, (outputs.count, outputs.capacity, overflow))
    device.kernel(NUMBER)(grid, block, *given, before, outputs.capacity, outputs.coordinates, outputs.table)
    item_offsets(device, outputs)


def item_offsets(device: Device, sites: SiteBuffer) -> None:
    """Launch the writing down of the first site of every item."""
    items, grid = len(sites.offsets) - 1, (blocks(sites.capacity + 1, THREADS), 1, 1)
    device.kernel(OFFSETS)(grid, (THREADS, 1, 1), sites.coordinates, sites.count, items, sites.offsets)
