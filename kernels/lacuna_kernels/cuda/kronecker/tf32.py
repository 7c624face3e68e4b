"""fp32 and tf32 on Hopper's tensor cores: batch-size-last, and batch-size-first for d = 1. See ks_matmul_tf32.cu."""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.fp16_halves import halves_of
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.way import LARGEST_TILES, Operands, Sums, arguments, read_together
from lacuna_kernels.cuda.precision import round_to_tf32
from lacuna_kernels.cuda.tensor_map import Swizzle, tensor_map
from lacuna_kernels.cuda.tile_counters import COUNTERS
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern

STEP = 32
"""TILE_K of ks_matmul_tf32.cu."""

_LINE_BYTES = 128  # of a swizzled row of a box: 32 elements
_VECTOR = 4  # elements of 16 bytes
_NO_MAP = bytes(128)


@dataclass(frozen=True, slots=True)
class Tf32:
    """Tiles of y of 64 * warpgroups rows by `columns` columns j, for one (i, l).

    parts     2: big and small parts of x and values, three products, fp32's accuracy; 1: rounded to tf32, one product
    x_stages  steps of 32 k of x under way in shared memory; w_stages of values
    y_columns  of a tile that go out at once; y_buffers of them for each warpgroup
    halves    whether the parts are scaled fp16, two of them, instead of tf32
    """

    layout: Layout
    parts: int
    columns: int
    warpgroups: int
    x_stages: int
    w_stages: int
    y_columns: int
    halves: bool = False
    y_buffers: int = 1

    @property
    def name(self) -> str:
        """Layout and tile."""
        return f"{'halves' if self.halves else 'tf32'} {self.layout} {self.rows}x{self.columns}"

    @property
    def packing(self) -> str:
        """By layout and columns: see `pack`."""
        return f"{'halves' if self.halves else 'tf32'} {self.layout} {self.parts} {self.columns}"

    @property
    def precision(self) -> Precision:
        """What it computes in."""
        return Precision.FP32 if self.parts == 2 else Precision.TF32

    @property
    def rows(self) -> int:
        """Of a tile."""
        return 64 * self.warpgroups

    @property
    def shared_bytes(self) -> int:
        """Of a block: stages of x, tiles of y on their way out, stages of values, where tiles are, and barriers."""
        y_lines = 2 * self.y_columns if self.layout is Layout.LAST else 64 * ceil(self.y_columns / STEP)
        lines = self.x_stages * self.rows + self.warpgroups * self.y_buffers * y_lines
        values = self.w_stages * self._value_bytes * self.columns * STEP
        return lines * _LINE_BYTES + values + 32 * self.x_stages + 16 * self.w_stages

    @property
    def _value_bytes(self) -> int:
        """Of all parts of a value."""
        return self.parts * (2 if self.halves else 4)

    @property
    def variant(self) -> Variant:
        """What to compile."""
        constants = {
            "LAST": int(self.layout is Layout.LAST),
            "PARTS": self.parts,
            "HALVES": int(self.halves),
            "TILE_B": self.columns,
            "WARPGROUPS": self.warpgroups,
            "X_STAGES": self.x_stages,
            "W_STAGES": self.w_stages,
            "Y_COLUMNS": self.y_columns,
            "Y_BUFFERS": self.y_buffers,
            "COUNTERS": COUNTERS,
        }
        name = "ks_matmul_tf32"
        return Variant(f"{name}.cu", name, tuple(constants.items()), ("sm_90a",), self.shared_bytes)

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """One."""
        return (self.variant,) if precision is self.precision else ()

    def sums(self, problem: Problem) -> Sums:
        """Neither rows nor tile change it."""
        if self.halves:
            return Sums.HALVES
        return Sums.SPLIT if self.parts == 2 else Sums.TF32

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """Blocks that are not tiny; batch-size-first, rows of blocks that start at multiples of 16 bytes."""
        pattern, last = problem.pattern, self.layout is Layout.LAST
        return (
            limits.hopper
            and self.shared_bytes <= limits.shared_bytes
            and problem.precision is self.precision
            and problem.layout is self.layout
            and (last or (problem.aligned and pattern.d == 1 and pattern.c % 4 == 0))
            and min(pattern.b, pattern.c) >= _LEAST_WIDTH
            and (pattern.b <= self.columns or self.columns % STEP == 0)
            and self._tiles(problem) < LARGEST_TILES
        )

    def seconds(self, problem: Problem, limits: DeviceLimits) -> float:
        """The slower of the tensor cores and of the memory, and a little of the other."""
        pattern, rates = problem.pattern, _RATES[self.layout, self.parts, self.halves]
        steps, across = ceil(pattern.c / STEP), self._across(pattern)
        products = steps * STEP // (16 if self.halves else 8) * (3 if self.parts == 2 else 1)
        product, part = rates.product + rates.column * self.columns, rates.part * self.columns
        tile = rates.tile + self.warpgroups * (products * product + part)
        clocks = ceil(self._tiles(problem) / limits.multiprocessors) * tile
        values = pattern.a * pattern.d * across * self.columns * steps * STEP * self._value_bytes
        x_again = problem.rows * pattern.width_in * 4 * (across - 1)
        moved = problem.bytes - pattern.nonzeros * 4 + values + rates.again * x_again
        if not _aligned(problem):
            moved += 2 * self.scratch_bytes(problem)
        slow, fast = sorted((moved / rates.bytes_per_second, clocks / _CLOCKS_PER_SECOND), reverse=True)
        return 4e-6 + slow + rates.shown * fast

    def scratch_bytes(self, problem: Problem) -> int:
        """A copy of x with rows that start at multiples of 16 bytes, as the copy engine wants them, if they do not."""
        return 0 if _aligned(problem) else 4 * problem.pattern.width_in * _pitch(problem)

    def pack(self, values: Tensor) -> Tensor:
        """Put the values [a, b, c, d] in the order of the tensor cores' blocks of 8 columns by 4 k, padded by zeros.

        Returns [a, d, tiles of columns, steps of 32 k, 4, 2, parts, columns / 8, 8, 4]: k = 8 t + 2 q + h of a step is
        at (t, h, q); column j is at its place, but batch-size-first 16 g + 4 q + 2 h + e at 16 g + 8 h + 2 q + e.
        Of halves, as bytes: [a, d, tiles of columns, steps of 32 k, 4, parts, columns / 8, 8, 8 k] in fp16, then the
        scales [a, b, d].
        """
        if self.halves:
            split, scales = halves_of(values, self.parts)
            order = self._in_order(split.flatten(0, 1))
            packed = order.reshape(self.parts, -1, *order.shape[1:]).permute(1, 2, 3, 4, 5, 0, 6, 7, 8)
            return torch.cat([part.contiguous().view(torch.uint8).flatten() for part in (packed, scales)])
        order = self._in_order(values)
        blocks = order.reshape(*order.shape[:-1], _VECTOR, 2).permute(0, 1, 2, 3, 4, 8, 5, 6, 7)
        big = round_to_tf32(blocks)
        return torch.stack((big, round_to_tf32(blocks - big))[: self.parts], 6).contiguous()

    def _in_order(self, values: Tensor) -> Tensor:
        """Values [a, b, c, d] as [a, d, tiles, steps, eights of k, eights of j, j, k], padded by zeros."""
        a, b, c, d = values.shape
        tiles, steps = ceil(b / self.columns), ceil(c / STEP)
        rows, length = tiles * self.columns, steps * STEP
        padded = values.new_zeros(a, d, rows, length)
        padded[:, :, :b, :c] = values.permute(0, 3, 1, 2)
        if self.layout is Layout.FIRST:
            padded = padded.view(a, d, rows // 16, 4, 2, 2, length).transpose(3, 4)
        padded = padded.reshape(a, d, tiles, self.columns // 8, 8, steps, STEP // 8, 8)
        return padded.permute(0, 1, 2, 5, 6, 3, 4, 7)

    def launch(self, device: Device, problem: Problem, packed: Tensor, operands: Operands) -> None:
        """Enqueue; see Way."""
        if not problem.rows:
            return  # no map has an axis of no length
        pattern = problem.pattern
        x = operands.x if _aligned(problem) else _aligned_copy(problem, operands)
        x_map = self._map(x, problem, pattern.c, self.rows, STEP)
        staged = _aligned(problem) if self.layout is Layout.LAST else pattern.b % 4 == 0
        y_map = self._map(operands.y, problem, pattern.b, 64, self.y_columns) if staged else _NO_MAP
        device.kernel(self.variant)(
            (min(self._tiles(problem), device.limits.multiprocessors), 1, 1),
            (128 * (self.warpgroups + 1), 1, 1),
            x_map,
            y_map,
            packed,
            packed[len(packed) - 4 * pattern.a * pattern.b * pattern.d :] if self.halves else None,
            *arguments(problem, operands),
            int(staged),
            read_together(pattern.a, self._value_bytes * pattern.b * pattern.c),
            device.tile_counter,
        )

    def _map(self, matrix: Tensor, problem: Problem, length: int, rows: int, features: int) -> bytes:
        """The boxes of a matrix with a * length * d features: 32 elements by `features`, or by `rows`."""
        a, d, n = problem.pattern.a, problem.pattern.d, problem.rows
        if self.layout is Layout.LAST:
            pitch = _pitch(problem)
            sizes, strides, box = (n, d, length, a), (pitch, pitch * d, pitch * d * length), (STEP, 1, features, 1)
        else:
            sizes, strides, box = (length, a, n, 1), (length, a * length, n * a * length), (STEP, 1, rows, 1)
        return tensor_map(matrix, sizes, [stride * 4 for stride in strides], box, Swizzle.BYTES_128)

    def _across(self, pattern: KSPattern) -> int:
        return ceil(pattern.b / self.columns)

    def _tiles(self, problem: Problem) -> int:
        pattern = problem.pattern
        return ceil(problem.rows / self.rows) * pattern.a * pattern.d * self._across(pattern)


_LEAST_WIDTH = 8
_CLOCKS_PER_SECOND = 1.7e9


@dataclass(frozen=True, slots=True)
class _Rates:
    """How long parts of a launch take, fitted to runs of an H200.

    product, column  clocks of an instruction of the tensor cores, and for each of its columns
    tile, part       clocks of a tile, and for 64 rows of each of its columns
    again            share of x that comes from memory again for every further tile of columns
    shown            share of what is faster, arithmetic or memory, that the slower one does not hide
    """

    product: float
    column: float
    tile: float
    part: float
    bytes_per_second: float
    again: float
    shown: float


_RATES = {  # by layout, parts, and whether they are halves
    (Layout.LAST, 1, False): _Rates(49, 0.41, 70, 5.8, 3.93e12, 0.23, 0.03),
    (Layout.LAST, 2, False): _Rates(11.3, 0.44, 250, 3.0, 4.27e12, 0.35, 0.17),
    (Layout.LAST, 2, True): _Rates(8.7, 0.85, 70, 7.2, 4.7e12, 0.68, 0.3),
    (Layout.FIRST, 1, False): _Rates(20, 0.42, 600, 0, 3.7e12, 0, 0.1),
    (Layout.FIRST, 2, False): _Rates(6.4, 0.47, 830, 0.8, 4.44e12, 0, 0.2),
    (Layout.FIRST, 2, True): _Rates(8.3, 0.92, 0, 12.4, 3.84e12, 0.04, 0.05),
}


def _pitch(problem: Problem) -> int:
    """Rows, up to whole vectors of 16 bytes."""
    return ceil(problem.rows / _VECTOR) * _VECTOR


def _aligned(problem: Problem) -> bool:
    """Whether all that the copy engine touches starts at multiples of 16 bytes; see `fits` for batch-size-first."""
    return problem.layout is Layout.FIRST or (problem.aligned and problem.rows % _VECTOR == 0)


def _aligned_copy(problem: Problem, operands: Operands) -> Tensor:
    """x batch-size-last, copied to rows that start at multiples of 16 bytes."""
    assert operands.scratch is not None
    copy = operands.scratch[: 4 * problem.pattern.width_in * _pitch(problem)].view(torch.float32)
    copy.view(problem.pattern.width_in, _pitch(problem))[:, : problem.rows].copy_(operands.x)
    return copy


_TILES = {
    Layout.LAST: (
        (2, 48, 4, 4, 4, 48),
        (2, 64, 3, 4, 5, 64),
        (2, 96, 3, 4, 3, 48),
        (2, 128, 2, 4, 4, 64),
        (2, 64, 3, 4, 10, 64, True),
        (2, 96, 3, 4, 6, 48, True),
        (2, 128, 2, 5, 7, 64, True),
        (1, 48, 3, 5, 8, 24, False, 2),
        (1, 64, 4, 4, 4, 32, False, 2),
        (1, 96, 4, 4, 4, 24, False, 2),
        (1, 128, 2, 6, 6, 64),
        (1, 128, 3, 4, 4, 32, False, 2),
        (1, 256, 2, 4, 4, 32, False, 2),
    ),
    Layout.FIRST: (
        (2, 48, 3, 4, 6, 48),
        (2, 64, 3, 4, 5, 64),
        (2, 96, 3, 3, 3, 96),
        (2, 128, 2, 4, 4, 64),
        (2, 64, 3, 4, 10, 64, True),
        (2, 96, 2, 6, 6, 96, True),
        (2, 128, 2, 5, 7, 64, True),
        (1, 48, 3, 5, 8, 48),
        (1, 64, 3, 5, 6, 64),
        (1, 96, 2, 7, 5, 96),
        (1, 128, 2, 6, 6, 64),
        (1, 256, 2, 4, 4, 32, False, 2),
    ),
}
WAYS = tuple(Tf32(layout, *tile) for layout, tiles in _TILES.items() for tile in tiles)
"""Narrow tiles waste less of b, wide ones keep the tensor cores busier; as many stages as the shared memory holds."""
