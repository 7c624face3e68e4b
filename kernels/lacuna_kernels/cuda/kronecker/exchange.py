"""Batch-size-first factors with d > 1 in 16 bits on Hopper, by teams of blocks: ks_matmul_exchange.cu."""

from dataclasses import dataclass
from math import ceil

from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.team_launch import launch_teams
from lacuna_kernels.cuda.kronecker.team_seconds import seconds_of
from lacuna_kernels.cuda.kronecker.team_stages import fits
from lacuna_kernels.cuda.kronecker.teams import SHARED_BYTES, Teams
from lacuna_kernels.cuda.kronecker.way import Operands, Sums
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern


@dataclass(frozen=True, slots=True)
class Exchange:
    """By teams so composed."""

    teams: Teams

    @property
    def name(self) -> str:
        """How the teams are composed."""
        return f"exchange {self.teams}"

    @property
    def packing(self) -> str:
        """The teams'."""
        return f"exchange {self.teams.packing}"

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

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """What the teams fit, in 16 bits."""
        return bool(self.variants(problem.precision)) and fits(self.teams, problem, limits)

    def seconds(self, problem: Problem, limits: DeviceLimits) -> float:
        """The teams'."""
        return seconds_of(self.teams, problem, limits)

    def scratch_bytes(self, problem: Problem) -> int:
        """None."""
        return 0

    def pack(self, values: Tensor) -> Tensor:
        """By chunk, block, columns, 16 k, then l and matrices [8 j][8 k], padded with zeros; see ks_matmul_exchange.cu.

        Within 32 j, places 8 m + 2 t + e of the product are j = 8 m + 4 e + t, or 8 t + 2 m + e: what a thread has are
        eights. Warpgroups that share the columns have every other 32.
        """
        teams, (a, b, c, d) = self.teams, values.shape
        pattern = KSPattern(a, b, c, d)
        passes, k_stages, chunks = teams.passes(pattern), teams.k_stages(pattern), ceil(d / teams.depth)
        padded = values.new_zeros(a, passes * teams.pass_columns, k_stages * teams.k, chunks * teams.depth)
        padded[:, :b, :c, :d] = values
        columns, (m, t, e) = ((4, 2, 4), (4, 6, 5)) if teams.strided else ((4, 4, 2), (5, 4, 6))
        # i pass part share (columns) step eight k chunk block l
        sides = (a, passes, teams.columns // teams.part, teams.shares, *columns, teams.steps * k_stages, 2, 8)
        order = (0, 10, 11, 1, 7, 12, 8, 3, 2, m, t, e, 9)
        return padded.view(*sides, chunks, teams.blocks, teams.own).permute(order).contiguous()

    def launch(self, device: Device, problem: Problem, packed: Tensor, operands: Operands) -> None:
        """Enqueue; see Way."""
        launch_teams(device, self.teams, self.variants(problem.precision)[0], problem, (packed,), operands)


WAYS = tuple(
    Exchange(Teams(*teams))
    for teams in (
        (8, 2, 128, 2, 2, 64, False),
        (8, 2, 128, 2, 3, 128, False),
        (8, 4, 96, 2, 2, 128, False),
        (4, 4, 64, 2, 2, 128, False),
        (4, 4, 96, 2, 2, 128, False),
        (2, 8, 32, 2, 1, 128, False),
        (8, 3, 64, 3, 2, 128, True),
        (8, 3, 96, 3, 2, 128, True),
        (8, 3, 128, 3, 2, 128, True),
        (4, 6, 64, 2, 1, 128, True),
        (8, 2, 128, 2, 4, 128, True),
        (8, 2, 192, 2, 2, 128, True),
        (4, 3, 128, 3, 2, 96, True),
        (2, 6, 64, 2, 1, 96, True),
        (8, 1, 128, 2, 4, 128, True),
        (4, 2, 128, 2, 4, 128, True),
        (2, 4, 96, 2, 2, 128, True),
        (2, 3, 96, 3, 2, 128, True),
        (2, 3, 128, 3, 2, 128, True),
        (4, 1, 128, 2, 4, 128, True),
        (2, 2, 192, 2, 2, 128, True),
        (1, 4, 96, 2, 2, 128, True),
    )
)
