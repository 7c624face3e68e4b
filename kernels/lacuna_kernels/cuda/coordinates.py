"""Sites on the device: their table, those that convolutions make, and where every item begins."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.scan import blocks
from lacuna_kernels.errors import Unsupported
from lacuna_kernels.types import Geometry, Triple

INSERT, INSERT_NEAR, MARK, COUNT, NUMBER, ADD = (
    Variant("sites.cu", name)
    for name in ("insert_outputs", "insert_near_outputs", "mark_firsts", "count_firsts", "number_outputs", "add_sites")
)
VARIANTS = (INSERT, INSERT_NEAR, MARK, COUNT, NUMBER, ADD)

THREADS = 256
TILE = 4 * THREADS
"""Candidates that a block numbers."""
NEAR_LANES = 4
"""Threads of an input, where outputs are inserted block by block."""
FREE = -1
TABLES, HEAD_ROWS, BUCKET = 3, 2, 4
"""Rows of a level's table, those of them that are the heads of blocks, and entries of a bucket of these."""


@dataclass(frozen=True, slots=True)
class SiteBuffer:
    """The sites of a level, with room for `capacity` of them; rows at or past the count mean nothing.

    coordinates  int32 [capacity, 4], item by item
    count        int32 [1], sites in use
    offsets      int32 [items + 1], where the sites of each item begin
    table        int32 [3, slots], slots of `table_slots(capacity)`: two rows are the heads of blocks, by which sites
                 are found, the last one is of candidates, while sites are made
    cells        int32 [capacity, 8], the rows of a block's cells (src/hash.cuh)
    """

    coordinates: Tensor
    count: Tensor
    offsets: Tensor
    table: Tensor
    cells: Tensor

    @property
    def capacity(self) -> int:
        """Room for so many sites."""
        return len(self.coordinates)

    @property
    def candidates(self) -> tuple[Tensor, int]:
        """The table of candidates, and what a hash is cut off with."""
        return self.table[HEAD_ROWS], self.table.shape[1] - 1

    @property
    def heads(self) -> tuple[Tensor, int]:
        """The table of heads, and what a hash is cut off with to find a bucket."""
        return self.table[:HEAD_ROWS], self.table.shape[1] // BUCKET - 1

    @property
    def found_by(self) -> tuple[Tensor | int, ...]:
        """What kernels find a site by."""
        return (*self.heads, self.cells, self.coordinates)

    def made_by(self, overflow: Tensor) -> tuple[Tensor | int, ...]:
        """What kernels that number sites write: `Room` of src/numbering.cuh."""
        return (self.count, self.capacity, overflow, self.coordinates, self.cells)


def table_slots(capacity: int) -> int:
    """Slots of a table: a power of two, 4 at least, so that at most half are ever in use."""
    return max(4, 2 << max(0, capacity - 1).bit_length())


def pack_geometry(geometry: Geometry, spatial_shape: Triple | None = None) -> Tensor:
    """`struct Geometry` of src/geometry.cuh: int32 [20]. spatial_shape bounds the output sites."""
    shape = spatial_shape or (-1, -1, -1)
    sizes = (geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation, shape, geometry.fan_out)
    flags = (int(geometry.floor_sites), int(geometry.generative))
    return torch.tensor([*(number for triple in sizes for number in triple), *flags]).int()


def numbering_work(candidates: int) -> int:
    """Numbers of int32 that numbering the sites of so many candidates takes."""
    return blocks(candidates, TILE) * (TILE // 32 + 1)


def numbering_buffers(work: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """Which candidates come first, a bit for each, and how many of each tile do."""
    tiles = blocks(candidates, TILE)
    bits, sums, _ = work.tensor_split([tiles * TILE // 32, numbering_work(candidates)])
    return bits, sums


def check_candidates(inputs: int, most: int) -> None:
    """Raise Unsupported if the outputs of so many inputs, `most` each, cannot be counted in 32 bits."""
    if inputs * most > torch.iinfo(torch.int32).max - TILE:  # whole tiles are counted
        raise Unsupported(f"{inputs} sites that make {most} sites each are more than 2^31 - {TILE + 1}")


def output_sites(
    device: Device,
    inputs: SiteBuffer,
    outputs: SiteBuffer,
    geometry: Geometry,
    packed: Tensor,
    work: Tensor,
    overflow: Tensor,
) -> None:
    """Launch the making of the output sites of a strided or generative convolution, as ops.sparse_conv.active_sites.

    Their table must be cleared.

    packed    int32 [20] on the device, from `pack_geometry`; see `check_candidates`
    work      int32 [numbering_work(inputs.capacity * most outputs of an input)]
    overflow  int32 [1], becomes 1 if there are more sites than room; which of them are then made is left open, but
              no row lies at or past the room
    """
    most = prod(geometry.fan_out)
    candidates = inputs.capacity * most
    bits, sums = numbering_buffers(work, candidates)
    block, given = (THREADS, 1, 1), (inputs.coordinates, inputs.count, packed, most)
    near = _is_near(geometry)
    device.kernel(INSERT_NEAR if near else INSERT)(
        (blocks(inputs.capacity * NEAR_LANES if near else candidates, THREADS), 1, 1),
        block,
        *(*given, inputs.cells, *outputs.candidates, bits, len(bits), overflow),
    )
    table, _ = outputs.candidates
    quarters = len(table) // 4
    device.kernel(MARK)((blocks(quarters, THREADS), 1, 1), block, table, quarters, bits)
    device.kernel(COUNT)((blocks(len(sums), THREADS // 32), 1, 1), block, inputs.count, most, bits, sums)
    device.kernel(NUMBER)((len(sums), 1, 1), block, *given, bits, sums, *outputs.made_by(overflow))
    add_sites(device, outputs, overflow)


def _is_near(g: Geometry) -> bool:
    """Whether `insert_near_outputs` makes the outputs: those of a kernel of 3^3 by strides of 2."""
    strided = g.kernel_size == (3, 3, 3) and g.stride == (2, 2, 2) and g.dilation == (1, 1, 1)
    return strided and not g.generative and not g.floor_sites


def add_sites(device: Device, sites: SiteBuffer, overflow: Tensor) -> None:
    """Launch the filling of the table of heads by numbered sites, and the writing of their offsets."""
    grid, block = (blocks(sites.capacity + 1, THREADS), 1, 1), (THREADS, 1, 1)
    places = sites.cells, len(sites.offsets) - 1, sites.offsets
    device.kernel(ADD)(grid, block, sites.coordinates, sites.count, *sites.heads, *places, overflow)
