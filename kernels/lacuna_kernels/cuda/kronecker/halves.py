"""fp32 and tf32 batch-size-first on the tensor cores of Hopper, by fp16 halves: ks_matmul_halves.cu."""

from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.fp16_halves import halves_of
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.way import LARGEST_TILES, Operands, Sums, arguments
from lacuna_kernels.cuda.tensor_map import Swizzle, tensor_map
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern

_STEP = 16
_MOST_STAGES = 3
_SHARED_BYTES = 227 * 1024
_PRODUCERS = 128
_CLOCKS_PER_SECOND = 1.7e9
_BYTES_PER_SECOND = 4.3e12


@dataclass(frozen=True, slots=True)
class Halves:
    """A block makes `rows` rows by `columns` columns j by `run` neighbouring l of y, for one i.

    groups   of four warps along the rows, along j, along l
    passes   times 64 rows of one group
    columns_each, run_each  columns j and neighbouring l of one group
    """

    precision: Precision
    groups: tuple[int, int, int]
    passes: int
    columns_each: int
    run_each: int

    @property
    def name(self) -> str:
        """The tile."""
        return f"halves {self.rows}x{self.columns}x{self.run}"

    @property
    def packing(self) -> str:
        """How many halves of the values there are, and how many columns are put in order together."""
        return f"halves {self._halves}{' by fours' if self._fours else ''}"

    @property
    def _fours(self) -> bool:
        """Whether a lane has four neighbouring columns, which with three l are whole vectors of y."""
        return self.run == 3

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return 64 * self.passes * self.groups[0]

    @property
    def columns(self) -> int:
        """Columns j of a tile."""
        return self.columns_each * self.groups[1]

    @property
    def run(self) -> int:
        """Neighbouring l of a tile."""
        return self.run_each * self.groups[2]

    def _pitch(self, floats: int) -> int:
        """Floats from row to row of x in shared memory."""
        banks = 4 if self.run % 8 == 0 else {4: 16, 2: 8}.get(self.run, 12)
        return floats + (banks - floats) % 32

    @property
    def _halves(self) -> int:
        return 2 if self.precision is Precision.FP32 else 1

    @property
    def _products(self) -> int:
        return 3 if self.precision is Precision.FP32 else 1

    @property
    def _x_bytes(self) -> int:
        return 4 * self.rows * self._pitch(_STEP * self.run)

    @property
    def _w_bytes(self) -> int:
        return self.run * self.columns * _STEP * 2 * self._halves

    @property
    def _buffer_bytes(self) -> int:
        """Some columns of all rows on their way out."""
        return 4 * self.rows * self.groups[1] * self._columns_out * self.run

    @property
    def _columns_out(self) -> int:
        """That are laid out at once."""
        return 16 if self.run < 4 else 8

    @property
    def _stage_bytes(self) -> int:
        return ceil((self._x_bytes + self._w_bytes + 8 * self.columns * self.run) / 128) * 128

    @property
    def _stages(self) -> int:
        return min(_MOST_STAGES, (_SHARED_BYTES - 1024 - self._buffer_bytes) // self._stage_bytes)

    @property
    def _buffers(self) -> int:
        return min(2, (_SHARED_BYTES - self._buffers_at) // self._buffer_bytes)

    @property
    def _buffers_at(self) -> int:
        """Where in shared memory they are, after barriers and stages."""
        return ceil((128 + self._stages * self._stage_bytes) / 1024) * 1024

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: barriers, stages, and columns on their way out."""
        return self._buffers_at + self._buffers * self._buffer_bytes

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """One, for its precision."""
        return (self._variant,) if precision is self.precision else ()

    @property
    def _variant(self) -> Variant:
        constants = {
            "GROUPS_N": self.groups[0],
            "GROUPS_B": self.groups[1],
            "GROUPS_D": self.groups[2],
            "PASSES": self.passes,
            "COLUMNS": self.columns_each,
            "RUN": self.run_each,
            "HALVES": self._halves,
            "STAGES": self._stages,
            "BUFFERS": self._buffers,
            "SHARED_BYTES": self.shared_bytes,
        }
        name = "ks_matmul_halves"
        return Variant(f"{name}.cu", name, tuple(constants.items()), ("sm_90a",), self.shared_bytes)

    def sums(self, problem: Problem) -> Sums:
        """The same in every tile."""
        return Sums.HALVES if self.precision is Precision.FP32 else Sums.HALF

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """Any factor with d > 1, any rows, any alignment, on Hopper; vectors of 16 bytes where they can be."""
        return (
            limits.hopper
            and problem.layout is Layout.FIRST
            and problem.precision is self.precision
            and problem.pattern.d > 1
            and self.shared_bytes <= limits.shared_bytes
            and self._tiles(problem) < LARGEST_TILES
        )

    def copies_vectors(self, problem: Problem) -> bool:
        """Whether it moves 16 bytes at once."""
        return self._writes_vectors(problem) and problem.pattern.c * problem.pattern.d % 4 == 0

    def _writes_vectors(self, problem: Problem) -> bool:
        """Whether it writes 16 bytes at once."""
        pattern = problem.pattern
        runs = pattern.d % 4 == 0 if self.run % 4 == 0 else pattern.d == self.run
        counted = pattern.b * pattern.d < 2**31  # by the copy engine
        return problem.aligned and runs and counted and pattern.b * pattern.d % 4 == 0

    def seconds(self, problem: Problem, limits: DeviceLimits) -> float:
        """Rounds of tiles, or the traffic of device memory; the rates are those of an H200."""
        rounds = ceil(self._tiles(problem) / limits.multiprocessors)
        clocks = rounds * self._tile_clocks(problem)
        whole_lines = problem.pattern.d <= self.run
        memory = problem.bytes / (_BYTES_PER_SECOND * (0.8 if whole_lines else 0.66))
        return 4e-6 + max(clocks / _CLOCKS_PER_SECOND, memory)

    def _tiles(self, problem: Problem) -> int:
        pattern = problem.pattern
        strips = ceil(problem.rows / self.rows)
        return strips * pattern.a * ceil(pattern.b / self.columns) * ceil(pattern.d / self.run)

    def _tile_clocks(self, problem: Problem) -> float:
        """Clocks of one tile: its steps over k, and writing it."""
        pattern = problem.pattern
        units = self.passes * self.run_each
        arithmetic = units * (200 + (1.5 + 1.6 * self._products) * self.columns_each)
        run_bytes = 4 * min(self.run, pattern.d) if pattern.d > self.run else 128
        rate = 25 * min(1, run_bytes / 60)
        traffic = self._x_bytes / rate + self._w_bytes / 50
        written = 4 * self.rows * self.columns * self.run / (22 if pattern.d % self.run == 0 else 12)
        if self.copies_vectors(problem):
            slow = {2: 0.89 if self.groups[0] == 3 else 0.78, 3: 0.84, 4: 0.78, 6: 1.05}.get(self.run, 1.0)
        else:
            slow = 3.0
        return 1500 + slow * (ceil(pattern.c / _STEP) * max(arithmetic, traffic) * 1.1 + written)

    def scratch_bytes(self, problem: Problem) -> int:
        """None."""
        return 0

    def pack(self, values: Tensor) -> Tensor:
        """Return uint8: the halves, [a][d][steps of 16 k][eights of j][half][8 k][j][k], then the scales, fp32 [a*b*d].

        Within the eights k lies as 0 4 1 5 2 6 3 7, as the kernel's lanes take it, and so does j; but by fours 16 j lie
        as 0 1 4 5 8 9 12 13 and 2 3 6 7 10 11 14 15. The values of one (i, j, l) share a scale, see halves_of.
        """
        a, b, c, d = values.shape
        split, scales = halves_of(values, self._halves)
        eights, steps = self._eights(b), ceil(c / _STEP)
        padded = split.new_zeros(self._halves, a, eights * 8, steps * _STEP, d)
        padded[:, :, :b, :c] = split
        columns = (eights // 2, 4, 2, 2) if self._fours else (eights, 2, 4, 1)
        parts = padded.view(self._halves, a, *columns, steps, 2, 2, 4, d)  # half i j j j j step k k k l
        inner = (4, 0, 7, 3, 5) if self._fours else (0, 7, 4, 3, 5)
        packed = parts.permute(1, 10, 6, 2, *inner, 9, 8).contiguous()
        return torch.cat([packed.view(torch.uint8).flatten(), scales.view(torch.uint8).flatten()])

    def _scales_at(self, pattern: KSPattern) -> int:
        """Where the scales start among what `pack` returns."""
        a, b, c, d = pattern.values
        return prod((a, d, ceil(c / _STEP), self._eights(b), self._halves, 8 * _STEP * 2))

    def _eights(self, b: int) -> int:
        """Of columns, as they are packed."""
        return 2 * ceil(b / 16) if self._fours else ceil(b / 8)

    def launch(self, device: Device, problem: Problem, packed: Tensor, operands: Operands) -> None:
        """Enqueue; see Way."""
        if not problem.rows:
            return
        device.kernel(self._variant)(
            (min(self._tiles(problem), device.limits.multiprocessors), 1, 1),
            (128 * prod(self.groups) + _PRODUCERS, 1, 1),
            self._map(operands.y, problem),
            operands.x,
            packed,
            packed[self._scales_at(problem.pattern) :],
            *arguments(problem, operands),
            int(self._writes_vectors(problem)),
        )

    def _map(self, y: Tensor, problem: Problem) -> bytes:
        """Describe y in boxes of 16 rows of some columns of all l; anything if it is not written by boxes."""
        (a, b, _, d), rows = problem.pattern.values, problem.rows
        if d != self.run or not self._writes_vectors(problem):
            return bytes(128)
        row = 4 * b * d
        box = (self._columns_out * d, 1, 16, 1)
        swizzle = Swizzle.BYTES_128 if box[0] == 32 else Swizzle.NONE
        return tensor_map(y, (b * d, a, rows, 1), (row, a * row, a * row * rows), box, swizzle)


WAYS = tuple(
    Halves(precision, *tile)
    for precision in (Precision.FP32, Precision.TF32)
    for tile in (
        ((1, 1, 2), 1, 64, 4),
        ((1, 1, 2), 1, 48, 4),
        ((1, 1, 2), 1, 64, 3),
        ((1, 1, 2), 1, 48, 3),
        ((2, 1, 1), 1, 64, 4),
        ((2, 1, 1), 1, 48, 4),
        ((2, 1, 1), 1, 64, 3),
        ((2, 1, 1), 1, 48, 3),
        ((2, 1, 1), 2, 64, 2),
        ((2, 1, 1), 2, 48, 2),
        ((3, 1, 1), 1, 64, 2),
        ((2, 1, 1), 1, 96, 2),
        ((1, 1, 3), 1, 32, 4),
    )
)
