"""16-bit factors with a small d, batch-size-first, on Hopper's sparse tensor cores: ks_matmul_tma.cu with SPARSE.

As in `joined` it is taken as if d were 1. Of every 4 neighbours of a row of such a block at most two are not 0: that is
the 2:4 structured sparsity of sparse tensor cores (PTX ISA, wgmma.mma_async.sp), which go through twice as many k for
it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.joined import joined, joined_block
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.tma import MANY, PANEL_BYTES, STEP, VECTOR, Tma
from lacuna_kernels.cuda.kronecker.way import LARGEST_TILES, Operands, Sums
from lacuna_kernels.cuda.tensor_map import Swizzle, tensor_map

_DEPTHS = (2, 3, 4, 6)
"""Values of d: places of values come again after 96 k."""
_ROWS = 64
_PIECE = 256
"""Elements of a packed block's rows: the widest that a copy can be."""


@dataclass(frozen=True, slots=True)
class SemiStructured(Tma):
    """Tiles of y by j = (j, l) and n; see Tma."""

    packing = "semi-structured"
    sparse = True

    @property
    def name(self) -> str:
        """The tile, by j and n."""
        return f"semi-structured {self._tile_j}x{self._tile_n}"

    @property
    def _tile_n(self) -> int:
        return self._columns

    @property
    def _tile_j(self) -> int:
        return self._rows

    @property
    def shared_bytes(self) -> int:
        """Half of the values that Tma has, and the bias by rows."""
        stage = (self._rows // 2 + self._columns) * STEP * 2
        panels = 2 * self.batch * self.kept * PANEL_BYTES
        return self.stages * (stage + 48) + panels + 16 + 4 * 2 * self.runs * _ROWS

    def sums(self, problem: Problem) -> Sums:
        """32 of (k, l) at a time: with d = 2 that is 16 of k, as all do it."""
        return Sums.MMA if problem.pattern.d == 2 else Sums.SEMI_STRUCTURED

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """16 bits on Hopper, batch-size-first, d of 2, 3, 4 or 6, aligned rows of whole vectors."""
        p = problem.pattern
        hopper = limits.hopper and self.shared_bytes <= limits.shared_bytes
        mine = problem.layout is Layout.FIRST and p.d in _DEPTHS and bool(self.variants(problem.precision))
        vectors = problem.aligned and p.b * p.d % VECTOR == 0 == p.c * p.d % VECTOR
        return hopper and mine and vectors and self._tiles(joined(problem)) < LARGEST_TILES

    def seconds(self, problem: Problem, limits: DeviceLimits) -> float:
        """Memory, or the tiles of one multiprocessor if slower, and some of the other; fitted to runs of an H200."""
        p, elements = joined(problem).pattern, self._rows * self._columns
        # Bytes of shared memory in a step: the products of each 64 j read all of x; and what comes.
        x, values = self._columns * STEP * 2, self._rows * STEP
        step = (self._rows // _ROWS * x + values + x + values) / 193 + 106
        clocks = ceil(p.c / STEP) * step + elements * 0.0464 + 154
        tiles = self._tiles(joined(problem)) / limits.multiprocessors
        products = (tiles if tiles > MANY else ceil(tiles)) * clocks / 1.755e9
        memory = problem.bytes / 5.5e12
        once = 0.9 if 128 < p.b <= self._rows else 1.0  # as measured, where all j are in a tile: x comes once
        return 4e-6 + once * (max(memory, products) + 0.55 * min(memory, products))

    def pack(self, values: Tensor) -> Tensor:
        """The values that are not 0, [a * blocks of 64 j, steps of 64 k, 8, 256].

        A block and step are 4096 bytes: of each 32 k the first and the last 8 values, of each of these all j.
        """
        a, b, c, d = values.shape
        blocks, steps = ceil(b * d / _ROWS), ceil(c * d / STEP)
        places = _places(blocks * _ROWS, steps * STEP, d).to(values.device)
        packed = values.new_empty(a * blocks, steps, _PIECE // 32, _PIECE)
        for i, mine in enumerate(packed.view(a, -1)):
            whole = values.new_zeros(blocks * _ROWS, steps * STEP)
            whole[: b * d, : c * d] = joined_block(values[i])
            kept = whole.view(blocks * _ROWS, -1, 4).gather(2, places)
            # block row | step half eight element
            mine.view(blocks, steps, 4, _ROWS, 8).copy_(kept.view(blocks, _ROWS, steps, 4, 8).permute(0, 2, 3, 1, 4))
        return packed

    def launch(self, device: Device, problem: Problem, packed: Tensor, operands: Operands) -> None:
        """Enqueue; see Way."""
        blocks, steps, rows, piece = packed.shape
        strides = [2 * piece, 2 * piece * rows, 2 * piece * rows * steps]
        box = (piece, rows, 1, self._rows // _ROWS)
        values_map = tensor_map(packed, (piece, rows, steps, blocks), strides, box, Swizzle.NONE)
        self._launch(device, joined(problem), problem.pattern.d, values_map, operands)

    def _block_bytes(self, problem: Problem) -> int:
        """Half of them."""
        return Tma._block_bytes(self, problem) // 2


def _places(rows: int, columns: int, d: int) -> Tensor:
    """Where among each 4 neighbours of row (j, l) the two are that are stored, [rows, columns / 4, 2] (int64).

    As the kernel has it (Places): a value alone has any 0 beside it.
    """
    at = torch.arange(0, columns, 4)
    first = (torch.arange(rows)[:, None] - at) % d
    second = first + d
    low = torch.where(first < 3, first, 0)
    high = torch.where((first < 3) & (second < 4), second, 3)
    return torch.stack([low, high], 2)


def _way(groups: int, runs: int, width: int, rings: Sequence[int]) -> SemiStructured:
    return SemiStructured(Layout.FIRST, groups, runs, width, *rings)


WAYS = (
    _way(2, 1, 256, (4, 2, 2)),
    _way(2, 2, 128, (4, 2, 2)),
    _way(2, 1, 128, (5, 2, 2)),
)
