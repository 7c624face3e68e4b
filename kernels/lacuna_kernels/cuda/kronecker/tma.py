"""16-bit factors on Hopper's tensor cores, where bulk tensor copies bring perfect tiles: batch-size-last, or d = 1."""

from dataclasses import dataclass
from math import ceil

from torch import Tensor
from torch.nn.functional import pad

from lacuna_kernels.cuda.activation import ACTIVATION_CODES, ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.tiles import tensor_cores_pay
from lacuna_kernels.cuda.kronecker.way import LARGEST_TILES, Operands, Sums, read_together
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.cuda.tensor_map import Promotion, Swizzle, tensor_map
from lacuna_kernels.cuda.tile_counters import COUNTERS
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern

_THREADS = 384
STEP = 64
"""k of a stage, and rows and columns of a panel of y."""
PANEL_BYTES = STEP * STEP * 2
VECTOR = 8
"""Elements in 16 bytes: what tensor maps count in."""
_LETTERS_BYTES = 8 * 24
"""By which the first block of a pair tells the other which tile is next."""
MANY = 30
"""Tiles of one multiprocessor that hide how the last of them end."""


@dataclass(frozen=True, slots=True)
class Tma:
    """Tiles of y as it lies, rows by columns: j by n batch-size-last, n by j batch-size-first.

    groups   warpgroups along the rows of a tile, of two; the others lie along its columns
    runs     runs of 64 rows of a warpgroup
    width    columns of a warpgroup
    stages   steps of 64 k under way
    batch    panels of 64 x 64 that a warpgroup finishes before it writes them
    kept     batches in shared memory
    pair     blocks, 1 or 2, that share columns n, of which each brings its share to both; batch-size-last
    """

    layout: Layout
    groups: int
    runs: int
    width: int
    stages: int
    batch: int
    kept: int
    pair: int = 1
    packing = "planes"
    sparse = False

    @property
    def name(self) -> str:
        """Layout and tile."""
        return f"tma {self.layout} {self._rows}x{self._columns}{' by pairs' if self.pair == 2 else ''}"

    @property
    def _rows(self) -> int:
        return self.groups * self.runs * 64

    @property
    def _columns(self) -> int:
        return 2 // self.groups * self.width

    @property
    def _tile_n(self) -> int:
        return self._columns if self.layout is Layout.LAST else self._rows

    @property
    def _tile_j(self) -> int:
        return self._rows if self.layout is Layout.LAST else self._columns

    @property
    def shared_bytes(self) -> int:
        """Stages with their barriers and corners of tiles, panels, barriers of residuals, letters, and the bias."""
        stage = (self._rows + self._columns) * STEP * 2
        biases = 2 * self.runs * 64 if self.layout is Layout.LAST else 2 * self.width
        letters = _LETTERS_BYTES if self.pair == 2 else 0
        return self.stages * (stage + 48) + 2 * self.batch * self.kept * PANEL_BYTES + 16 + letters + 4 * biases

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """One for fp16, one for bf16."""
        if (dtype := DTYPES[precision]).itemsize != 2:
            return ()
        constants: dict[str, int | str] = {
            "ELEMENT": ELEMENTS[dtype],
            "LAST": int(self.layout is Layout.LAST),
            "SPARSE": int(self.sparse),
            "GROUPS_ROWS": self.groups,
            "TILES_ROWS": self.runs,
            "WIDTH": self.width,
            "STAGES": self.stages,
            "BATCH": self.batch,
            "KEPT": self.kept,
            "PAIR": self.pair,
            "SHARED_BYTES": self.shared_bytes,
            "COUNTERS": COUNTERS,
        }
        kernel = "ks_matmul_tma"
        return (Variant(f"{kernel}.cu", kernel, tuple(constants.items()), ("sm_90a",), self.shared_bytes),)

    def sums(self, problem: Problem) -> Sums:
        """16-bit products, 16 of k at a time."""
        return Sums.MMA

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """16 bits on Hopper. Batch-size-first: d = 1, aligned rows of whole vectors, wide enough for tensor cores."""
        p = problem.pattern
        hopper = limits.hopper and self.shared_bytes <= limits.shared_bytes
        mine = problem.layout is self.layout and bool(self.variants(problem.precision))
        if not (hopper and mine and self._tiles(problem) < LARGEST_TILES):
            return False
        if self.layout is Layout.LAST:
            return True
        vectors = problem.aligned and p.b % VECTOR == 0 == p.c % VECTOR
        return p.d == 1 and vectors and tensor_cores_pay(p, problem.dtype)

    def seconds(self, problem: Problem, limits: DeviceLimits) -> float:
        """Memory, or the tiles of one multiprocessor if slower, and some of the other; fitted to runs of an H200."""
        p, elements = problem.pattern, self._rows * self._columns
        steps, rounds = ceil(p.c / STEP), self._tiles(problem) / limits.multiprocessors
        products = steps * elements * STEP / 2048 + elements * 2 / 62 + 150
        traffic = steps * (self._rows + self._columns / self.pair) * STEP * 2 / 48
        tiles = (rounds if rounds > MANY else ceil(rounds)) * max(products, traffic) / 1.54e9
        if self.pair == 2:
            tiles *= 0.97 if p.b <= 512 else 1.03  # as measured
        if self.layout is Layout.LAST and p.b > 64 and (self._tile_j == 64 or (self._tile_j == 192 and p.c <= 128)):
            tiles *= 1.4  # as measured
        memory = problem.bytes / 4.2e12
        detour = 2 * problem.bytes / 3e12 if self._detours(problem) else 0.0
        return 4e-6 + max(memory, tiles) + 0.28 * min(memory, tiles) + detour

    def _block_bytes(self, problem: Problem) -> int:
        """Of the values of a block, batch-size-first."""
        return 2 * problem.pattern.b * problem.pattern.c

    def _tiles(self, problem: Problem) -> int:
        """Those of pairs are whole."""
        return self.pair * self._pairs(problem)

    def _pairs(self, problem: Problem) -> int:
        p = problem.pattern
        return p.a * p.d * ceil(p.b / (self.pair * self._tile_j)) * ceil(problem.rows / self._tile_n)

    def _detours(self, problem: Problem) -> bool:
        """Whether x and the residual must be copied to aligned rows first, and y is written element by element."""
        return self.layout is Layout.LAST and (problem.rows % VECTOR != 0 or not problem.aligned)

    def scratch_bytes(self, problem: Problem) -> int:
        """Aligned rows of x and of the residual, where theirs are not."""
        if not self._detours(problem):
            return 0
        widths = problem.pattern.width_in + problem.pattern.width_out
        return 2 * widths * _aligned(problem.rows)

    def pack(self, values: Tensor) -> Tensor:
        """The planes [a*d, b, c] of the values, c filled up with zeros to whole vectors."""
        a, b, c, d = values.shape
        planes = values.permute(0, 3, 1, 2).reshape(a * d, b, c)
        return pad(planes, (0, _aligned(c) - c)).contiguous()

    def launch(self, device: Device, problem: Problem, packed: Tensor, operands: Operands) -> None:
        """Enqueue; see Way."""
        self._launch(device, problem, problem.pattern.d, self._map_of_planes(packed, problem.pattern), operands)

    def _launch(self, device: Device, problem: Problem, d: int, values_map: bytes, operands: Operands) -> None:
        """Launch for a problem as the kernel sees it; `d` is the kernel's."""
        if problem.rows == 0:
            return
        p, epilogue, last = problem.pattern, operands.epilogue, self.layout is Layout.LAST
        x, y, residual, pitch = operands.x, operands.y, epilogue.residual, problem.rows
        if detours := self._detours(problem):
            x, residual = _aligned_copies(problem, operands)
            y, pitch = x, _aligned(problem.rows)  # y is written without its map: any other will do
        y_map = self._map(y, problem, p.b, pitch, STEP)
        device.kernel(self.variants(problem.precision)[0])(
            (self.pair * min(self._pairs(problem), device.limits.multiprocessors // self.pair), 1, 1),
            (_THREADS, 1, 1),
            self._map(x, problem, p.c, pitch, STEP if last else self._tile_n),
            values_map,
            y_map,
            y_map if residual is None else self._map(residual, problem, p.b, pitch, STEP),
            epilogue.bias,
            residual,
            operands.y,
            operands.count,
            device.tile_counter,
            problem.rows,
            *(p.a, p.b, p.c, d),
            read_together(p.a, self._block_bytes(problem)),
            problem.rows if last else p.a * p.b,
            p.b,
            int(detours),
            ACTIVATION_CODES[epilogue.activation],
            float(epilogue.negative_slope),
        )

    def _map(self, matrix: Tensor, problem: Problem, length: int, pitch: int, box: int) -> bytes:
        """Of x (length c) or y (length b); `box` is along k or j batch-size-last, along n batch-size-first."""
        p, n = problem.pattern, problem.rows
        if self.layout is Layout.LAST:
            sizes, strides = (n, p.d, length, p.a), (pitch, pitch * p.d, pitch * p.d * length)
            boxes = (STEP, 1, box, 1)
        else:
            sizes, strides = (length, n, p.a, 1), (p.a * length, length, p.a * length * n)
            boxes = (STEP, box, 1, 1)
        return tensor_map(matrix, sizes, [2 * s for s in strides], boxes, Swizzle.BYTES_128, Promotion.BYTES_256)

    def _map_of_planes(self, packed: Tensor, pattern: KSPattern) -> bytes:
        _, b, pitch = packed.shape
        strides = [2 * pitch, 2 * pitch * b, 2 * pitch * b * pattern.d]
        sizes = (pattern.c, b, pattern.d, pattern.a)
        return tensor_map(packed, sizes, strides, (STEP, self._tile_j, 1, 1), Swizzle.BYTES_128)


def _aligned(length: int) -> int:
    """A number of elements, up to whole vectors."""
    return ceil(length / VECTOR) * VECTOR


def _aligned_copies(problem: Problem, operands: Operands) -> tuple[Tensor, Tensor | None]:
    """x and the residual of a launch batch-size-last, copied to rows that start at multiples of 16 bytes."""
    assert operands.scratch is not None
    pitch, residual = _aligned(problem.rows), operands.epilogue.residual
    p = problem.pattern
    elements = operands.scratch[: 2 * (p.width_in + p.width_out) * pitch].view(problem.dtype)
    rows = elements.view(-1, pitch)
    x = rows[: p.width_in]
    x[:, : problem.rows].copy_(operands.x)
    if residual is None:
        return x, None
    copy = rows[p.width_in :]
    copy[:, : problem.rows].copy_(residual)
    return x, copy


WAYS = (
    Tma(Layout.LAST, groups=1, runs=1, width=128, stages=4, batch=2, kept=2),
    Tma(Layout.LAST, groups=2, runs=1, width=256, stages=4, batch=2, kept=1),
    Tma(Layout.LAST, groups=2, runs=1, width=256, stages=4, batch=2, kept=1, pair=2),
    Tma(Layout.LAST, groups=1, runs=3, width=128, stages=3, batch=3, kept=1),
    Tma(Layout.FIRST, groups=2, runs=2, width=64, stages=4, batch=2, kept=2),
    Tma(Layout.FIRST, groups=2, runs=1, width=128, stages=5, batch=2, kept=2),
    Tma(Layout.FIRST, groups=2, runs=1, width=256, stages=4, batch=2, kept=1),
    Tma(Layout.FIRST, groups=2, runs=2, width=192, stages=3, batch=3, kept=1),
)
"""Wider tiles read x less often; narrower ones waste less of b, and leave room for more to be under way.

For wide blocks the second-level cache is the limit: pairs ask less of it.
"""
