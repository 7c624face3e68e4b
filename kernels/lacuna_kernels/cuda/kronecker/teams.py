"""Teams of blocks that take x apart for one another: how they are composed."""

from dataclasses import dataclass
from math import ceil

from lacuna_kernels.cuda.kronecker.boxes import Boxes
from lacuna_kernels.cuda.kronecker.stages import Stages
from lacuna_kernels.ops.kronecker_linear import KSPattern

SHARED_BYTES = 227 * 1024
ROWS = 64
"""Of a tile: for all of them weights are read once."""
_VECTOR_BYTES = 16
_MOST_SUMS = 2 * (176 - 32)
"""Columns of all l of a warpgroup, and of products, that its registers have room for: 32 are for all else."""
_MOST_ALONE = 4
"""Vectors of 4 j that threads do not deal out in pairs: DEALT of exchange_out.cuh."""


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
    def packing(self) -> str:
        """What the order of the weights follows from: which block has which l, and the columns and k of a stage."""
        return f"{self.blocks}x{self.own} {self.shares}x{self.columns}x{self.k}"

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
        """Of a stage of x in planes: all rows of a block's l, each with a scale if they are of halves."""
        return ROWS * self.own * (self.k * self.weight_size + (4 if self.halves else 0))

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
        return Boxes(self.depth, self.whole, self._piece_bytes, self.size)

    @property
    def _piece_bytes(self) -> int:
        """Of a row together in a box; halves want whole pieces in 8 k."""
        if not self.whole:
            return self.depth * self.size
        vectors = self.depth * self.size // 2 * (1 if self.halves else self.steps)
        return 128 if vectors % 8 == 0 else 64 if vectors % 4 == 0 or not self.halves else 32

    def passes(self, pattern: KSPattern) -> int:
        """Over the planes of a tile."""
        return ceil(pattern.b / self.pass_columns)

    def k_stages(self, pattern: KSPattern) -> int:
        """Stages of x, and of weights, in a pass."""
        return ceil(pattern.c / self.k)

    def chunks(self, pattern: KSPattern) -> int:
        """Chunks of neighbouring l, of all i."""
        return pattern.a * ceil(pattern.d / self.depth)

    def times(self, pattern: KSPattern, stages: Stages) -> int:
        """How often the x of a tile comes: once if its planes are kept for all passes."""
        return 1 if stages.x >= self.k_stages(pattern) else self.passes(pattern)

    @property
    def strided(self) -> bool:
        """Whether a thread's columns are every fourth, or else neighbours: STRIDED of exchange.cuh."""
        return self.depth % (_VECTOR_BYTES // self.size) == 0

    @property
    def columns_together(self) -> int:
        """Which b must be a multiple of: as many j as are sent, or written by a thread, or by two, at once."""
        if not self.halves:
            return 8
        return 1 if self.strided else 8 if self.depth > _MOST_ALONE else 4

    @property
    def writers(self) -> int:
        """Warps that write y."""
        return 7 - self.takers // 32

    @property
    def _taken(self) -> int:
        """l that are taken apart at a time."""
        vector = _VECTOR_BYTES // self.size
        if self.depth % vector == 0:
            return vector
        return 4 if self.depth > 8 else self.depth

    @property
    def units(self) -> int:
        """Of a stage of x: what a taker takes apart at a time."""
        return self.own_rows * 2 * self.steps * (self.depth // self._taken)

    @property
    def crews(self) -> int:
        """Crews of takers, which have stages in turn."""
        return max(1, self.takers // self.units)

    @property
    def _l_each(self) -> int:
        """l of a warpgroup."""
        return self.own * self.shares // self.groups

    @property
    def _sets(self) -> int:
        """Sets of products that are no sums yet: two, so that the next l's are under way, if there are registers.

        Not with 32 k a stage: stages would be given back later.
        """
        if not self.halves:
            return 0
        return 2 if self.steps == 1 and self._l_each > 1 and self.columns * (self._l_each + 2) <= _MOST_SUMS else 1

    @property
    def sums(self) -> int:
        """Of a thread that multiplies, and products that are no sums yet."""
        return (self._l_each + self._sets) * self.columns // 2

    def constants(self) -> dict[str, int]:
        """For the compiler: how teams are composed, and registers of those who take x apart, bring, and multiply."""
        if self.groups == 3:  # 480 for five warpgroups
            apart, bring, multiply = (80, 64, 112) if self.depth == 6 else (88, 80, 104)
        elif self.halves and self.own == 3:  # 512 for four
            apart, bring, multiply = 88, 72, 176
        else:
            apart, bring, multiply = (80, 80, 176) if self.sums > 64 else (112, 96, 152)
        return {
            "TEAM": self.blocks,
            "OWN_L": self.own,
            "COLUMNS": self.columns,
            "GROUPS": self.groups,
            "STEPS": self.steps,
            "TAKERS": self.takers,
            "WHOLE": int(self.whole),
            "PIECE": self._piece_bytes,
            "TAKEN": self._taken,
            **({"SPLIT": self.halves, "SETS": self._sets} if self.halves else {}),
            "APART_REGISTERS": apart,
            "BRING_REGISTERS": bring,
            "MULTIPLY_REGISTERS": multiply,
        }
