"""Batch-size-first factors with d > 1 in 16 bits on Hopper, by teams of blocks: ks_matmul_exchange.cu."""

from dataclasses import dataclass
from math import ceil

from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.kronecker.by_teams import ByTeams
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.teams import SHARED_BYTES, STAGE_K, Teams
from lacuna_kernels.cuda.kronecker.way import Sums
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern


@dataclass(frozen=True, slots=True)
class Exchange(ByTeams):
    """By teams so composed."""

    @property
    def name(self) -> str:
        """How the teams are composed."""
        return f"exchange {self.teams}"

    @property
    def packing(self) -> str:
        """The order of the weights follows from who has which."""
        return f"exchange {self.teams.blocks}x{self.teams.own} {self.teams.shares}x{self.teams.columns}"

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """One a type of 16 bits."""
        dtype = DTYPES[precision]
        if dtype.itemsize != self.teams.size:
            return ()
        constants: dict[str, int | str] = {"ELEMENT": ELEMENTS[dtype], **self.teams.constants()}
        name = "ks_matmul_exchange"
        return (Variant(f"{name}.cu", name, tuple(constants.items()), ("sm_90a",), SHARED_BYTES),)

    def sums(self, problem: Problem) -> Sums:
        """As all on the tensor cores."""
        return Sums.MMA

    def pack(self, values: Tensor) -> Tensor:
        """By chunk, block, columns, 16 k, then l and matrices [8 j][8 k], padded with zeros; see ks_matmul_exchange.cu.

        Within 32 j, places 8 m + 2 t + e of the product are j = 8 t + 2 m + e: a thread's sums are 8 neighbouring j.
        Warpgroups that share the columns have every other 32.
        """
        teams, (a, b, c, d) = self.teams, values.shape
        pattern = KSPattern(a, b, c, d)
        passes, k_stages, chunks = teams.passes(pattern), teams.k_stages(pattern), ceil(d / teams.depth)
        padded = values.new_zeros(a, passes * teams.pass_columns, k_stages * STAGE_K, chunks * teams.depth)
        padded[:, :b, :c, :d] = values
        # i pass part share t m e step eight k chunk block l
        sides = (
            teams.columns // teams.part,
            teams.shares,
            4,
            4,
            2,
            2 * k_stages,
            2,
            8,
            chunks,
            teams.blocks,
            teams.own,
        )
        return padded.view(a, passes, *sides).permute(0, 10, 11, 1, 7, 12, 8, 3, 2, 5, 4, 6, 9).contiguous()


WAYS = tuple(
    Exchange(Teams(2, 0, *teams))
    for teams in (
        (8, 2, 64, 128, 2, False),
        (8, 2, 64, 64, 2, False),
        (4, 4, 64, 64, 2, False),
        (8, 4, 64, 64, 2, False),
        (8, 3, 64, 64, 3, True),
        (4, 3, 64, 32, 3, True),
        (4, 2, 64, 128, 2, True),
        (4, 2, 64, 64, 2, True),
        (2, 3, 64, 64, 3, True),
        (2, 2, 64, 128, 2, True),
        (2, 2, 64, 64, 2, True),
        (2, 1, 128, 128, 2, True),
        (2, 1, 128, 64, 2, True),
        (2, 1, 64, 128, 2, True),
        (4, 1, 64, 128, 2, True),
        (8, 1, 64, 128, 2, True),
        (1, 4, 64, 64, 2, True),
        (1, 2, 64, 128, 2, True),
    )
)
