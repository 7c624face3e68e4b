"""Teams of blocks that take x apart for one another: how they are composed, and how they fill their memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from math import ceil

from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.kronecker.boxes import Boxes
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.stages import Stages, fewest_waits
from lacuna_kernels.cuda.kronecker.way import LARGEST_TILES
from lacuna_kernels.ops.kronecker_linear import KSPattern

SHARED_BYTES = 227 * 1024
ROWS = 64
"""Of a tile: for all of them weights are read once."""
_BARRIERS_BYTES = 2048
_MOST_STAGES = 36
_VECTOR_BYTES = 16


@dataclass(frozen=True, slots=True)
class Teams:
    """The constants of the kernel.

    blocks   of a team: each reads and writes 64 / blocks of the rows
    own      neighbouring l that a block multiplies; the team's blocks * own are a chunk
    columns  j of a product
    groups   warpgroups that multiply: they differ in l, or where these cannot be shared out, in columns
    steps    of 16 k in a stage
    takers   threads that take x apart, of 224: the others write y
    whole    whether a chunk is all of d
    halves   that values of fp32 are split into; 0: they have 16 bits, and stay as they are
    """

    blocks: int
    own: int
    columns: int
    groups: int
    steps: int
    takers: int
    whole: bool
    halves: int = 0

    def __str__(self) -> str:
        return f"{self.blocks}x{self.own}{'' if self.whole else '+'} {self.columns}x{self.k}x{self.takers}"

    @property
    def size(self) -> int:
        """Bytes of an element of x and y."""
        return 4 if self.halves else 2

    @property
    def part(self) -> int:
        """Columns of a warpgroup that are sent at once."""
        return 64 // self.size

    @property
    def k(self) -> int:
        """Of a stage."""
        return 16 * self.steps

    @property
    def depth(self) -> int:
        """Neighbouring l of a chunk."""
        return self.blocks * self.own

    @property
    def shares(self) -> int:
        """Warpgroups that share the columns of a pass."""
        return self.groups if self.own % self.groups else 1

    @property
    def pass_columns(self) -> int:
        """Columns of a pass over the planes."""
        return self.columns * self.shares

    @property
    def own_rows(self) -> int:
        """Of a block."""
        return ROWS // self.blocks

    @property
    def threads(self) -> int:
        """Of a block: those that take x apart, bring and write, and those that multiply."""
        return 256 + 128 * self.groups

    @property
    def raw_bytes(self) -> int:
        """Of a stage of x as it comes: all l of a block's rows."""
        return self.k * self.depth * self.own_rows * self.size

    @property
    def plane_bytes(self) -> int:
        """Of a stage of x in planes: all rows of a block's l, each with a scale every 16 k if they are of halves."""
        return ROWS * self.own * (self.k * self.weight_size + (4 * self.steps if self.halves else 0))

    @property
    def weight_bytes(self) -> int:
        """Of a stage of weights: a product's columns, for a block's l, with room for their scales if there are any."""
        return self.packed_bytes + (4 * self.pass_columns * self.own if self.halves else 0)

    @property
    def packed_bytes(self) -> int:
        """Of the weights alone of a stage."""
        return self.k * self.pass_columns * self.own * self.weight_size

    @property
    def weight_size(self) -> int:
        """Bytes of a value in planes, and of a weight."""
        return 2 * max(1, self.halves)

    @property
    def y_bytes(self) -> int:
        """Of a stage of y: a part of all l of a block's rows."""
        return self.part * self.shares * self.depth * self.own_rows * self.size

    @property
    def boxes(self) -> Boxes:
        """How x comes."""
        eight = self.depth * self.size // 2  # vectors in 8 k
        if self.halves:
            whole = 128 if eight % 8 == 0 else 64 if eight % 4 == 0 else 32
        else:
            whole = 128 if self.k // 16 * eight % 8 == 0 else 64
        return Boxes(self.depth, self.whole, whole if self.whole else self.depth * self.size, self.size)

    def passes(self, pattern: KSPattern) -> int:
        """Over the planes of a tile."""
        return ceil(pattern.b / self.pass_columns)

    def k_stages(self, pattern: KSPattern) -> int:
        """Stages of x, and of weights, in a pass."""
        return ceil(pattern.c / self.k)

    def chunks(self, pattern: KSPattern) -> int:
        """Chunks of neighbouring l, of all i."""
        return pattern.a * ceil(pattern.d / self.depth)

    def stages(self, pattern: KSPattern) -> Stages | None:
        """Of all that there is room for, those with the fewest waits; None if none fit."""
        return _best_stages(self, pattern)

    def times(self, pattern: KSPattern, stages: Stages) -> int:
        """How often the x of a tile comes: once if its planes are kept for all passes."""
        return 1 if stages.x >= self.k_stages(pattern) else self.passes(pattern)

    def options(self, pattern: KSPattern) -> Iterator[Stages]:
        """Ways to fill the shared memory: weights have what the others leave."""
        whole, every = self.k_stages(pattern), self.k_stages(pattern) * self.passes(pattern)
        kept = {whole, whole + 1, ceil(1.25 * whole), ceil(1.5 * whole), 2 * whole} if every > whole else {2, 3, 6, 8}
        for x, raw, y in product({4, *kept}, (2, 3, 4), (2, 3, 4, 6, 8) if self.halves else (2, 3, 4)):
            if x < 2 or x % self.crews or raw % self.crews:  # a stage is one crew's: see take_apart
                continue
            left = SHARED_BYTES - _BARRIERS_BYTES - raw * self.raw_bytes - x * self.plane_bytes - y * self.y_bytes
            w = min(left // self.weight_bytes, every, _MOST_STAGES)
            if w >= min(2, every) and x <= _MOST_STAGES:
                yield Stages(raw, x, w, y)

    def waits(self, pattern: KSPattern, stages: Stages) -> float:
        """About what share of the time is lost by so few stages: fitted to runs of an H200.

        x that comes again for every pass counts by what it brings beside the weights.
        """
        if self.halves:
            return self._waits_of_halves(pattern, stages)
        raw, x, w, y = stages.raw, stages.x, stages.w, stages.y
        whole, passes = self.k_stages(pattern), self.passes(pattern)
        lost = 0.0
        if w < whole * passes:
            lost += {2: 0.25, 3: 0.07}.get(w, 0.0) + (0.1 if whole * passes <= 8 else 0.0)
        if passes > 1 and x >= whole:  # planes are kept, and another tile's come meanwhile if there is room
            lost += 0.02 / passes * max(0.0, 3 - 2 * x / whole) + {2: 0.0, 3: 0.0, 4: 0.01}[raw] + 0.005 * (y == 2)
        else:
            lost += {2: 0.12, 3: 0.016, 4: 0.0}[raw] + {2: 0.014, 3: 0.004, 4: 0.0}[y]
            lost += {2: 0.14, 3: 0.02}.get(x, 0.0)
            if passes > 1:
                lost += 0.1 * max(1.0, (passes - 1) * ROWS / self.pass_columns)
        return lost

    def _waits_of_halves(self, pattern: KSPattern, stages: Stages) -> float:
        whole, passes, w = self.k_stages(pattern), self.passes(pattern), stages.w
        lost = {2: 0.08, 3: 0.03, 4: 0.01}.get(stages.y, 0.0)
        if w < whole * passes:
            lost += {2: 0.03, 3: 0.0}.get(w, min(0.01 * (w - 3), 0.05))
        if passes > 1 and stages.x >= whole:
            return lost + {2: 0.02, 3: 0.01, 4: 0.0}[stages.raw] + 0.02 / passes * max(0.0, 3 - 2 * stages.x / whole)
        lost += {2: 0.08, 3: 0.02, 4: 0.0}[stages.raw] + {2: 0.2, 3: 0.04, 4: 0.0}.get(stages.x, 0.03)
        return lost + (0.1 * max(1.0, (passes - 1) * ROWS / self.pass_columns) if passes > 1 else 0.0)

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """Of its depth; aligned rows of whole pieces, in 16 bits b of whole vectors, on Hopper."""
        p = problem.pattern
        mine = p.d == self.depth if self.whole else p.d * self.size % _VECTOR_BYTES == 0 and p.d >= self.depth
        return (
            limits.hopper
            and limits.shared_bytes >= SHARED_BYTES
            and problem.layout is Layout.FIRST
            and problem.aligned
            and mine
            and (self.halves > 0 or p.b % 8 == 0)
            and self.boxes.fits(p, p.c)
            and ceil(problem.rows / ROWS) * self.chunks(p) < LARGEST_TILES
            and self.stages(p) is not None
        )

    @property
    def writers(self) -> int:
        """Warps that write y."""
        return 7 - self.takers // 32

    @property
    def units(self) -> int:
        """Of a stage of x: what a taker takes apart at a time."""
        vector = _VECTOR_BYTES // self.size
        if self.halves:
            taken = 4 if self.depth % 4 == 0 else self.depth
        else:
            taken = 4 if self.depth > vector and self.depth % vector else min(self.depth, vector)
        return self.own_rows * 2 * self.steps * (self.depth // taken)

    @property
    def crews(self) -> int:
        """Crews of takers, which have stages in turn."""
        return max(1, self.takers // self.units)

    @property
    def sums(self) -> int:
        """Of a thread that multiplies, and products that are no sums yet."""
        mine = self.own * self.shares // self.groups  # l of a warpgroup
        products = 0 if not self.halves else 2 if self.groups < 3 and self.columns * (mine + 2) <= 256 else 1
        return (mine + products) * self.columns // 2

    def constants(self) -> dict[str, int]:
        """For the compiler: how teams are composed, and registers of those who take x apart, bring, and multiply."""
        if self.groups == 3:  # 480 for five warpgroups
            apart, bring, multiply = (80, 64, 112) if self.depth == 6 else (88, 80, 104)
        else:  # 512 for four
            apart, bring, multiply = (80, 80, 176) if self.sums > 64 else (112, 96, 152)
        return {
            "TEAM": self.blocks,
            "OWN_L": self.own,
            "COLUMNS": self.columns,
            "GROUPS": self.groups,
            "STEPS": self.steps,
            "TAKERS": self.takers,
            "WHOLE": int(self.whole),
            **({"SPLIT": self.halves} if self.halves else {}),
            "APART_REGISTERS": apart,
            "BRING_REGISTERS": bring,
            "MULTIPLY_REGISTERS": multiply,
        }


@lru_cache(maxsize=4096)
def _best_stages(teams: Teams, pattern: KSPattern) -> Stages | None:
    return fewest_waits(teams.options(pattern), partial(teams.waits, pattern))
