"""Plain kernels for any factor on any GPU, by tiles: the ways that always fit (batch-size-first)."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.way import Operands, Sums, arguments
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern

STAGES = 3
"""Steps over k under way in ks_matmul_mma.cu."""

COLUMN_THREADS = 256
_LARGEST_GRID = 2**31 - 1
_CLOCKS_PER_SECOND = 1.7e9
_SECTOR_BYTES = 32
_SIDE_BY_SIDE = 1.8
"""How much longer than by the count tiles with several l took on an H200 (median of 190, 1.2 to 3)."""


class Method(StrEnum):
    """The kernels, ks_matmul_<method>.cu; the sums of one method have the same bits whatever the tile and the rows."""

    COLUMNS = "columns"  # one thread a column of y: thin blocks
    SIMT = "simt"  # tiles, fp32 multiply-adds
    MMA = "mma"  # tiles, tensor cores


@dataclass(frozen=True, slots=True)
class Tile:
    """What one block makes of y: n rows, b columns j, d neighbouring l, for one i.

    split_n, split_b  simt: rows and columns j of one thread; mma: warps along the rows and along j

    For Method.COLUMNS a thread makes n rows of one column, and the rest is 1.
    """

    method: Method
    n: int
    b: int = 1
    d: int = 1
    split_n: int = 1
    split_b: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block."""
        if self.method is Method.COLUMNS:
            return COLUMN_THREADS
        if self.method is Method.SIMT:
            return self.d * (self.b // self.split_b) * (self.n // self.split_n)
        return 32 * self.split_n * self.split_b

    @property
    def step(self) -> int:
        """TILE_K: how far one step goes along k."""
        if self.method is Method.COLUMNS:
            return 1
        if self.method is Method.SIMT:
            return {1: 16, 2: 16}.get(self.d, 8)
        return 32 if self.d <= 2 else 16

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block: the stages, then the sums in their place."""
        if self.method is not Method.MMA:
            return 0
        pitch = self.step * self.d // 2 + (4 if self.d > 4 else 4 * self.d)
        return 4 * max(STAGES * (self.n + self.b) * pitch, self.n * (self.b * self.d + 4))

    def blocks(self, pattern: KSPattern, rows: int) -> int:
        """Blocks that make all of y."""
        strips = ceil(rows / self.n)
        if self.method is Method.COLUMNS:
            return ceil(strips * pattern.width_out / COLUMN_THREADS)
        return strips * pattern.a * ceil(pattern.b / self.b) * ceil(pattern.d / self.d)

    packing = "plain"

    @property
    def name(self) -> str:
        """The method and the tile."""
        return f"{self.method} {self.n}x{self.b}x{self.d}"

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """One, for the types that the tile is for."""
        dtype = DTYPES[precision]
        return (self.variant(dtype),) if self in TILES[dtype] else ()

    def sums(self, problem: Problem) -> Sums:
        """The method's: neither rows nor tile change it."""
        return Sums.MMA if self.method is Method.MMA else Sums.FMA

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """Any factor, batch-size-first: wide blocks of 16 bits on the tensor cores, the others not."""
        return (
            problem.layout is Layout.FIRST
            and self in TILES[problem.dtype]
            and (self.method is Method.MMA) is tensor_cores_pay(problem.pattern, problem.dtype)
            and self.shared_bytes <= limits.shared_bytes
        )

    def seconds(self, problem: Problem, limits: DeviceLimits) -> float:
        """By clocks, and what the memory takes: these kernels do not hide the one behind the other."""
        rows, size = max(problem.rows, 1), problem.dtype.itemsize
        clocks = predicted_clocks(self, problem.pattern, size, rows, limits)
        if self.d > 1:
            clocks *= _SIDE_BY_SIDE
        return clocks / _CLOCKS_PER_SECOND + problem.bytes / 6e12

    def scratch_bytes(self, problem: Problem) -> int:
        """None."""
        return 0

    def pack(self, values: Tensor) -> Tensor:
        """As they are."""
        return values.contiguous()

    def launch(self, device: Device, problem: Problem, packed: Tensor, operands: Operands) -> None:
        """Enqueue; see Way."""
        device.kernel(self.variant(problem.dtype))(
            (min(self.blocks(problem.pattern, problem.rows), _LARGEST_GRID), 1, 1),
            (self.threads, 1, 1),
            operands.x,
            packed,
            *arguments(problem, operands),
        )

    def variant(self, dtype: torch.dtype) -> Variant:
        """What to compile for matrices of this type."""
        names = ("WARPS_N", "WARPS_B") if self.method is Method.MMA else ("THREAD_N", "THREAD_B")
        constants: dict[str, int | str] = {"ELEMENT": ELEMENTS[dtype]}
        if self.method is Method.COLUMNS:
            constants |= {"ROWS": self.n}
        else:
            constants |= {"TILE_N": self.n, "TILE_B": self.b, "TILE_D": self.d}
            constants |= {names[0]: self.split_n, names[1]: self.split_b}
        if self.method is Method.SIMT:
            constants |= {"TILE_K": self.step}
        if self.method is Method.MMA:
            constants |= {"STAGES": STAGES, "SHARED_BYTES": self.shared_bytes}
        name = f"ks_matmul_{self.method}"
        return Variant(f"{name}.cu", name, tuple(constants.items()), dynamic_shared_bytes=self.shared_bytes)


COLUMN_TILES = (Tile(Method.COLUMNS, 1), Tile(Method.COLUMNS, 8))

SIMT_TILES = (
    Tile(Method.SIMT, 128, 64, 1, 8, 4),
    Tile(Method.SIMT, 32, 32, 1, 4, 2),
    Tile(Method.SIMT, 64, 64, 2, 8, 8),
    Tile(Method.SIMT, 64, 64, 4, 8, 8),
    Tile(Method.SIMT, 64, 32, 8, 8, 8),
    Tile(Method.SIMT, 32, 8, 8, 4, 2),
)

MMA_TILES = (
    Tile(Method.MMA, 128, 128, 1, 4, 2),
    Tile(Method.MMA, 64, 64, 1, 2, 2),
    Tile(Method.MMA, 16, 32, 1, 1, 4),
    Tile(Method.MMA, 64, 64, 2, 2, 4),
    Tile(Method.MMA, 16, 32, 2, 1, 4),
    Tile(Method.MMA, 64, 64, 4, 4, 4),
    Tile(Method.MMA, 16, 32, 4, 1, 4),
    Tile(Method.MMA, 64, 32, 8, 4, 4),
    Tile(Method.MMA, 32, 32, 8, 2, 4),
    Tile(Method.MMA, 16, 32, 8, 1, 4),
)

TILES: dict[torch.dtype, tuple[Tile, ...]] = {
    torch.float32: COLUMN_TILES + SIMT_TILES,
    torch.float16: COLUMN_TILES + MMA_TILES,
    torch.bfloat16: COLUMN_TILES + MMA_TILES,
}
"""All there are, by type."""

WAYS = tuple(dict.fromkeys(tile for tiles in TILES.values() for tile in tiles))


def tensor_cores_pay(pattern: KSPattern, dtype: torch.dtype) -> bool:
    """Whether blocks are wide enough for the fragments of the tensor cores; never for fp32, which they would round."""
    return dtype is not torch.float32 and min(pattern.b, pattern.c) >= 8 and pattern.b * pattern.c >= 256


def copies_vectors(tile: Tile, pattern: KSPattern) -> bool:
    """Whether ks_matmul_mma.cu may copy 16 bytes at once: runs that start and end at multiples of 8 elements."""
    whole = pattern.d % 8 == 0 if tile.d == 8 else pattern.d == tile.d
    return whole and pattern.c * pattern.d % 8 == 0


def predicted_clocks(tile: Tile, pattern: KSPattern, size: int, rows: int, limits: DeviceLimits) -> float:
    """Clocks until all blocks are done: the slower of arithmetic and traffic, but never less than the latency.

    size is that of an element, in bytes. The rates are round numbers of a recent data-centre GPU: they order the
    tiles, and predict no more than that.
    """
    waves = ceil(tile.blocks(pattern, rows) / limits.multiprocessors)
    work = max(_ARITHMETIC[tile.method](tile, pattern), _traffic_bytes(tile, pattern, size, rows) / 40)
    if tile.method is Method.MMA and not copies_vectors(tile, pattern):
        work += (tile.n + tile.b) * pattern.c * tile.d / 12
    latency = 1500 + 500 * ceil(pattern.c / tile.step) + work
    resident = max(1, min(1024 // tile.threads, limits.shared_bytes // max(tile.shared_bytes, 1)))
    return max(waves * work, ceil(waves / resident) * latency)


def _padded_products(tile: Tile, pattern: KSPattern) -> int:
    return tile.n * tile.b * tile.d * ceil(pattern.c / tile.step) * tile.step


_ARITHMETIC: dict[Method, Callable[[Tile, KSPattern], float]] = {
    Method.COLUMNS: lambda tile, pattern: tile.n * COLUMN_THREADS * pattern.c / 16,
    Method.SIMT: lambda tile, pattern: _padded_products(tile, pattern) / (12 * (tile.split_n * tile.split_b) ** 0.5),
    Method.MMA: lambda tile, pattern: _padded_products(tile, pattern) / (800 if tile.d < 4 else 600),
}
"""Clocks that one multiprocessor computes on one block: the multiply-adds, over how many it does in a clock."""


def _traffic_bytes(tile: Tile, pattern: KSPattern, size: int, rows: int) -> float:
    """Bytes between a multiprocessor and the second-level cache for one block, in whole sectors of runs along l."""
    n = min(tile.n, rows)
    if tile.method is Method.COLUMNS:
        return float(COLUMN_THREADS * size * (n * (pattern.c + 1) + pattern.c))
    b, d = min(tile.b, pattern.b), min(tile.d, pattern.d)
    run = d * size if tile.d < pattern.d else pattern.c * d * size
    waste = ceil(run / _SECTOR_BYTES) * _SECTOR_BYTES / run
    return waste * size * d * ((n + b) * pattern.c + n * b)
