"""fp32 and tf32 batch-size-first with d > 1 on Hopper, by teams of blocks and halves: ks_matmul_exchange_halves.cu."""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.fp16_halves import halves_of
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.team_launch import launch_teams
from lacuna_kernels.cuda.kronecker.team_seconds import seconds_of
from lacuna_kernels.cuda.kronecker.team_stages import fits
from lacuna_kernels.cuda.kronecker.teams import SHARED_BYTES, Teams
from lacuna_kernels.cuda.kronecker.way import Operands, Sums
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern

_PRECISIONS = {2: Precision.FP32, 1: Precision.TF32}
"""By how many halves there are of a value."""


@dataclass(frozen=True, slots=True)
class ExchangeHalves:
    """By teams so composed: in fp32 if they split values into two halves, in tf32 if they round them to one."""

    teams: Teams

    @property
    def precision(self) -> Precision:
        """What so many halves are for."""
        return _PRECISIONS[self.teams.halves]

    @property
    def name(self) -> str:
        """How the teams are composed."""
        return f"exchange halves {self.teams}"

    @property
    def packing(self) -> str:
        """The teams', and how many halves there are."""
        return f"exchange halves {self.teams.halves} {self.teams.packing}"

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """One, for its precision."""
        if precision is not self.precision:
            return ()
        name, constants = "ks_matmul_exchange_halves", self.teams.constants()
        return (Variant(f"{name}.cu", name, tuple(constants.items()), ("sm_90a",), SHARED_BYTES),)

    def sums(self, problem: Problem) -> Sums:
        """By the k of a stage, with 16 those of ks_matmul_halves.cu."""
        if self.precision is Precision.FP32:
            return Sums.HALVES if self.teams.steps == 1 else Sums.HALVES_OF_32
        return Sums.HALF if self.teams.steps == 1 else Sums.HALF_OF_32

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """What the teams fit, in its precision."""
        return bool(self.variants(problem.precision)) and fits(self.teams, problem, limits)

    def seconds(self, problem: Problem, limits: DeviceLimits) -> float:
        """The teams'."""
        return seconds_of(self.teams, problem, limits)

    def scratch_bytes(self, problem: Problem) -> int:
        """None."""
        return 0

    def pack(self, values: Tensor) -> Tensor:
        """Return uint8: halves by chunk, block, columns, 16 k, l, half and matrices [8 j][8 k]; then scales, fp32.

        Padded with zeros; see ks_matmul_exchange_halves.cu. Within 16 j, places 8 m + 2 t + e of the product are
        j = 8 m + 4 e + t, or 4 t + 2 m + e; warpgroups that share the columns have every other 16. Within 8 k, 2 t + e
        are k = t + 4 e. Scales are by chunk, block, columns, l, 16 j and t, m, e.
        """
        teams, (a, b, c, d) = self.teams, values.shape
        pattern = KSPattern(a, b, c, d)
        passes, k_stages, chunks = teams.passes(pattern), teams.k_stages(pattern), ceil(d / teams.depth)
        halves, scales = halves_of(values, teams.halves)
        b_padded, c_padded, d_padded = passes * teams.pass_columns, k_stages * teams.k, chunks * teams.depth
        padded = halves.new_zeros(teams.halves, a, b_padded, c_padded, d_padded)
        padded[:, :, :b, :c, :d] = halves
        padded_scales = scales.new_zeros(a, b_padded, d_padded)
        padded_scales[:, :b, :d] = scales
        sixteen, (m, t, e) = ((2, 2, 4), (5, 7, 6)) if teams.strided else ((4, 2, 2), (6, 5, 7))
        # half i pass part share (sixteen) step eight e t chunk block l
        columns = (a, passes, teams.columns // teams.part, teams.shares, *sixteen)
        owners = (chunks, teams.blocks, teams.own)
        split = padded.view(teams.halves, *columns, teams.steps * k_stages, 2, 2, 4, *owners)
        split = split.permute(1, 12, 13, 2, 8, 14, 0, 9, 4, 3, m, t, e, 11, 10)
        by_place = padded_scales.view(*columns, *owners).permute(0, 7, 8, 1, 9, 3, 2, t - 1, m - 1, e - 1)
        return torch.cat([part.contiguous().view(torch.uint8).flatten() for part in (split, by_place)])

    def launch(self, device: Device, problem: Problem, packed: Tensor, operands: Operands) -> None:
        """Enqueue; see Way."""
        teams, pattern = self.teams, problem.pattern
        stages = teams.chunks(pattern) * teams.blocks * teams.passes(pattern) * teams.k_stages(pattern)
        weights = packed, packed[stages * teams.packed_bytes :]
        launch_teams(device, teams, self.variants(problem.precision)[0], problem, weights, operands)


WAYS = tuple(
    ExchangeHalves(Teams(*teams, halves))
    for halves in _PRECISIONS
    for teams in (
        (8, 2, 64, 2, 2, 128, False),
        (8, 1, 64, 2, 2, 128, False),
        (8, 1, 128, 2, 2, 128, False),
        (4, 4, 48, 2, 1, 128, False),
        (4, 4, 64, 2, 1, 128, False),
        (4, 2, 64, 2, 2, 128, False),
        (4, 2, 96, 2, 2, 128, False),
        (2, 4, 48, 2, 1, 128, False),
        (2, 4, 64, 2, 1, 128, False),
        (8, 2, 128, 2, 2, 128, True),
        (4, 3, 64, 2, 1, 96, True),
        (4, 2, 128, 2, 2, 128, True),
        (2, 3, 48, 2, 1, 128, True),
        (2, 3, 64, 2, 1, 128, True),
        (4, 1, 128, 2, 2, 128, True),
        (2, 2, 128, 2, 2, 128, True),
        (1, 4, 64, 2, 1, 128, True),
        (1, 3, 48, 2, 1, 128, True),
        (1, 3, 64, 2, 1, 128, True),
        (2, 1, 128, 2, 2, 128, True),
        (8, 1, 96, 2, 2, 128, False),
        (4, 2, 96, 2, 2, 128, True),
        (2, 2, 96, 2, 2, 128, True),
        (2, 1, 96, 2, 2, 128, True),
    )
)
