"""Batch-size-first factors with d > 1 in 16 bits on Hopper: x is taken apart into a plane for every l on its way in."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from math import ceil

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.boxes import Boxes
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.stages import Stages, fewest_waits
from lacuna_kernels.cuda.kronecker.way import LARGEST_TILES, Operands, Sums, arguments
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern

_SIZE = 2
_THREADS = 512
_SHARED_BYTES = 227 * 1024
_BARRIERS_BYTES = 2048
_MOST_STAGES = 40


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a launch is cut up.

    blocks          that share the work
    tiles_per_item  tiles of rows that a block takes of one chunk before it goes on to the next
    chunks_together neighbouring chunks that are done side by side, before the next ones
    stages          in shared memory
    resident        whether those of weights are all weights of a chunk
    """

    blocks: int
    tiles_per_item: int
    chunks_together: int
    stages: Stages
    resident: bool


@dataclass(frozen=True, slots=True)
class Planes:
    """The constants of ks_matmul_planes.cu.

    depth  neighbouring l that a block takes: 16, or all of them, where that is 2, 3, 4, 6, 8, 12 or 16
    whole  whether they are all
    tile   rows of one product
    """

    depth: int
    whole: bool
    tile: int

    @property
    def name(self) -> str:
        """What they are."""
        return f"planes {self.depth}{'' if self.whole else '+'} {self.tile}"

    @property
    def packing(self) -> str:
        """The order of the weights follows from the depth."""
        return f"planes {self.depth}"

    @property
    def octets(self) -> bool:
        """Whether the two consumers differ in l; else they differ in rows."""
        return self.depth == 16

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return self.tile if self.octets else 2 * self.tile

    @property
    def steps(self) -> int:
        """Steps of 16 k in a stage of x."""
        return max(1, (4 if self.octets else 8) // (self.rows // 8))

    @property
    def stage_bytes(self) -> int:
        """Of x."""
        return self.steps * 16 * self.rows * self.depth * _SIZE

    @property
    def _boxes(self) -> Boxes:
        piece = {3: 96, 2: 64, 6: 64}.get(self.depth, 128) if self.whole else 2 * self.depth
        return Boxes(self.depth, self.whole, piece)

    @property
    def _y_boxes(self) -> Boxes:
        return Boxes(3, True, 32) if self.depth == 3 else self._boxes

    @property
    def pairs(self) -> bool:
        """Whether the two rows of a thread's sums are neighbouring j."""
        return self.depth < 8 or self.depth == 12

    @property
    def box_rows(self) -> int:
        """Rows of a box of y; 0 if y is written without boxes."""
        return {16: 8, 12: 8, 6: 8, 3: 16}.get(self.depth, 0)

    @property
    def free_bytes(self) -> int:
        """Shared memory for the stages."""
        boxes = 4 if self.depth < 8 else 2  # of y
        return _SHARED_BYTES - _BARRIERS_BYTES - boxes * self.box_rows * 64 * self.depth * _SIZE

    def chunks(self, pattern: KSPattern) -> int:
        """Chunks of neighbouring l, of all i."""
        return pattern.a * ceil(pattern.d / self.depth)

    def weight_bytes(self, pattern: KSPattern) -> int:
        """Of a stage of weights: up to 64 j by 16 k."""
        return min(_groups(pattern.b), 8) * self.depth * 256

    def stages(self, pattern: KSPattern) -> Stages | None:
        """Of all that there is room for, those with the fewest waits; None if none fit."""
        return _best_stages(self, pattern)

    def passes(self, pattern: KSPattern) -> int:
        """Over the planes of a tile: 64 j each."""
        return ceil(_groups(pattern.b) / 8)

    def least_x(self, pattern: KSPattern) -> int:
        """Stages of planes: they are kept for as long as all j take them."""
        return 2 if self.passes(pattern) == 1 else ceil(ceil(pattern.c / 16) / self.steps)

    def all_weights(self, pattern: KSPattern) -> int:
        """Stages of a chunk."""
        return ceil(pattern.c / 16) * self.passes(pattern)

    def options(self, pattern: KSPattern) -> Iterator[Stages]:
        """Ways to fill the shared memory: weights have what the others leave."""
        size, least, every = self.weight_bytes(pattern), self.least_x(pattern), self.all_weights(pattern)
        read_past = 8 * self.depth * 256 - size  # the products read 64 j of the last weights, whatever there is
        for raw, x in product((2, 3, 4, 6, 8), {least, least + 1, least + 2, ceil(1.5 * least), 2 * least}):
            room = (raw + x) * self.stage_bytes
            w = min((self.free_bytes - room) // size, _MOST_STAGES, every)
            if w >= min(2, every) and x <= _MOST_STAGES and room >= read_past:
                yield Stages(raw, x, w)

    def waits(self, pattern: KSPattern, stages: Stages) -> float:
        """About what share of the time is lost by so few stages: fitted to runs of an H200."""
        raw, weights = stages.raw * self.stage_bytes / 1024, stages.w * self.weight_bytes(pattern) / 1024
        several, lost = self.passes(pattern) > 1, 0.0
        if stages.w < self.all_weights(pattern):
            lost += {2: 0.3, 3: 0.1}.get(stages.w, 0.0) + 0.2 * max(0.0, 1 - weights / 90)
        if several:
            lost += 0.24 * max(0.0, 1 - raw / 48) + 0.02 * max(0.0, 4 - 3 * stages.x / self.least_x(pattern))
        else:
            lost += 0.11 * max(0.0, 1 - raw / 64) + {2: 0.04, 3: 0.01}.get(stages.x, 0.0)
        if not self.whole and pattern.d != 32:  # blocks that read other parts of the same lines should not drift apart
            lost += 0.15 * (stages.raw - 2)
        return lost + 0.01 * max(0.0, raw / (48 if several else 64) - 1)

    def schedule(self, pattern: KSPattern, rows: int, multiprocessors: int) -> Schedule | None:
        """The stages, and how to share the work so that the last block is done soonest; None if there is no room."""
        stages = self.stages(pattern)
        if stages is None:
            return None
        tiles, chunks = ceil(rows / self.rows), self.chunks(pattern)
        all_weights = self.all_weights(pattern)
        resident = stages.w == all_weights
        reload = 2500 + all_weights * self.weight_bytes(pattern) / 100 if resident else 0
        tile = self.rows * self.depth * _SIZE * (pattern.b + pattern.c) / 16

        def clocks(blocks: int, together: int) -> float:
            stays = blocks % chunks == 0
            return ceil(ceil(tiles / together) * chunks / blocks) * (together * tile + (0 if stays else reload))

        whole = multiprocessors // chunks * chunks
        options = [(blocks, together) for blocks in {multiprocessors, whole} - {0} for together in _together(resident)]
        blocks, together = min(options, key=lambda option: (clocks(*option), option))
        return Schedule(
            min(blocks, max(tiles * chunks, 1)), together, self._side_by_side(pattern, resident), stages, resident
        )

    def _side_by_side(self, pattern: KSPattern, resident: bool) -> int:
        """Chunks that blocks share at a time: lines of 128 bytes, but not more weights on their way than that takes.

        They are some of those of one i, or all of some i.
        """
        chunks, of_i = self.chunks(pattern), self.chunks(pattern) // pattern.a
        if resident or (self.whole and chunks % 2):
            return chunks
        most = 2 if self.whole else 64 // self.depth
        return max(k for k in range(1, most + 1) if chunks % k == 0 and (k % of_i == 0 or of_i % k == 0))

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """One a type of 16 bits."""
        dtype = DTYPES[precision]
        return (self.variant(dtype),) if dtype in (torch.float16, torch.bfloat16) else ()

    def variant(self, dtype: torch.dtype) -> Variant:
        """What to compile."""
        transposer, consumer = (120, 176) if self.depth == 12 else (88, 192)
        constants: dict[str, int | str] = {
            "ELEMENT": ELEMENTS[dtype],
            "DEPTH": self.depth,
            "WHOLE": int(self.whole),
            "TILE": self.tile,
            "TRANSPOSER_REGISTERS": transposer,
            "CONSUMER_REGISTERS": consumer,
        }
        name = "ks_matmul_planes"
        return Variant(f"{name}.cu", name, tuple(constants.items()), ("sm_90a",), _SHARED_BYTES)

    def sums(self, problem: Problem) -> Sums:
        """As all on the tensor cores."""
        return Sums.MMA

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """Of its depth; aligned rows, whose blocks are made of whole pieces, and threads that write whole vectors."""
        p = problem.pattern
        mine = p.d == self.depth if self.whole else p.d % 8 == 0 and p.d > self.depth
        whole_vectors = self._y_boxes.fits(p, p.b) if self.box_rows else p.b * p.d % 8 == 0
        whole_out = whole_vectors and (p.b % 2 == 0 or not self.pairs)
        return (
            limits.hopper
            and limits.shared_bytes >= _SHARED_BYTES
            and problem.layout is Layout.FIRST
            and problem.aligned
            and problem.dtype in (torch.float16, torch.bfloat16)
            and min(p.b, p.c) >= 8
            and mine
            and self._boxes.fits(p, p.c)
            and whole_out
            and ceil(problem.rows / self.rows) * self.chunks(p) < LARGEST_TILES
            and self.stages(p) is not None
        )

    def seconds(self, problem: Problem, limits: DeviceLimits) -> float:
        """The slowest of device memory, the weights' way, shared memory; and a start."""
        p = problem.pattern
        schedule = self.schedule(p, max(problem.rows, 1), limits.multiprocessors)
        assert schedule is not None
        tiles = ceil(problem.rows / self.rows) * self.chunks(p)
        share = ceil(tiles / schedule.blocks)
        passes, steps = self.passes(p), ceil(p.c / 16)
        weights = 0 if schedule.resident else _groups(p.b) * steps * self.depth * 256
        x, y = (self.rows * self.depth * _SIZE * side for side in (p.c, p.b))
        products = passes * steps * (self.depth if self.octets else 2 * self.depth)
        shared = products * (16 + self.tile / 4) + (3 * x + 2 * y + weights) / 128
        from_memory = 18.0 if self.whole else {0: 15.0, 16: 13.0}.get(p.d % 32, 10.0)  # bytes a clock
        from_cache = {2: 12.0, 3: 15.0}.get(schedule.stages.w, 26.0)  # with few stages every copy is waited for
        clocks = max((x + y) / from_memory, weights / from_cache, shared * 1.1, 380 * passes * steps)
        odd = {
            3: 1 + 0.035 * (passes - 1),
            6: 1.1 if p.c >= 96 else 0.93,
            8: 0.85 if self.tile == 16 else 1.0,
        }.get(self.depth, 1.0)
        return 3e-6 + share * odd * (clocks + 600 * passes) / 1.7e9

    def scratch_bytes(self, problem: Problem) -> int:
        """None."""
        return 0

    def pack(self, values: Tensor) -> Tensor:
        """By chunk, 64 j, 16 k, then 8 j, l, and matrices [8 j][8 k], padded with zeros; see ks_matmul_planes.cu."""
        a, b, c, d = values.shape
        groups, steps, chunks = _groups(b), ceil(c / 16), ceil(d / self.depth)
        padded = values.new_zeros(a, groups * 8, steps * 16, chunks * self.depth)
        padded[:, :b, :c, :d] = values
        j, k = (torch.tensor(order, device=values.device) for order in (self._order_j(), self._order_k()))
        padded = padded.view(a, groups // 2, 16, steps, 16, -1)[:, :, j][:, :, :, :, k]
        padded = padded.reshape(a, groups, 8, steps, 2, 8, chunks, self.depth)
        blocks = (padded[:, first : first + 8] for first in range(0, groups, 8))
        ordered = [block.permute(0, 6, 3, 1, 7, 4, 2, 5).reshape(a, chunks, -1) for block in blocks]
        return torch.cat(ordered, -1).contiguous()

    def _order_j(self) -> list[int]:
        """Which of 16 neighbouring j each row of a product is."""
        if self.pairs:
            return [2 * (row % 8) + row // 8 for row in range(16)]
        if self.octets:
            return [row // 8 * 8 + row // 2 % 2 + row % 2 * 2 + row // 4 % 2 * 4 for row in range(16)]
        return list(range(16))

    def _order_k(self) -> list[int]:
        """Which of 16 neighbouring k each column of a product is: threads may have every other vector."""
        if self.octets or self.depth % 3 == 0:
            return list(range(16))
        in_vector = 8 // self.depth
        return [(2 * (q // in_vector) + half) * in_vector + q % in_vector for half in range(2) for q in range(8)]

    def launch(self, device: Device, problem: Problem, packed: Tensor, operands: Operands) -> None:
        """Enqueue; see Way."""
        if not problem.rows:
            return
        pattern = problem.pattern
        schedule = self.schedule(pattern, problem.rows, device.limits.multiprocessors)
        assert schedule is not None
        x_map = self._boxes.map(operands.x, pattern, pattern.c, self.rows, self.steps * 16)
        y_map = self._y_boxes.map(operands.y, pattern, pattern.b, self.box_rows, 64) if self.box_rows else x_map
        device.kernel(self.variant(problem.dtype))(
            (schedule.blocks, 1, 1),
            (_THREADS, 1, 1),
            x_map,
            y_map,
            packed,
            *arguments(problem, operands),
            schedule.stages.raw,
            schedule.stages.x,
            schedule.stages.w,
            schedule.tiles_per_item,
            schedule.chunks_together,
        )


def _groups(b: int) -> int:
    """Groups of 8 j, an even number."""
    return 2 * ceil(b / 16)


@lru_cache(maxsize=4096)
def _best_stages(planes: Planes, pattern: KSPattern) -> Stages | None:
    return fewest_waits(planes.options(pattern), partial(planes.waits, pattern))


def _together(resident: bool) -> Iterator[int]:
    """How many tiles a block may take of one chunk: more than one pays only for weights that stay."""
    yield 1
    if resident:
        yield from (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


WAYS = (
    Planes(16, True, 32),
    Planes(16, True, 16),
    Planes(16, False, 32),
    Planes(16, False, 16),
    Planes(12, True, 16),
    Planes(8, True, 32),
    Planes(8, True, 16),
    Planes(6, True, 32),
    Planes(4, True, 64),
    Planes(4, True, 32),
    Planes(3, True, 64),
    Planes(2, True, 128),
    Planes(2, True, 64),
)
