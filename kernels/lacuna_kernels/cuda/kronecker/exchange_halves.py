"""fp32 and tf32 batch-size-first with d > 1 on Hopper, by teams of blocks and halves: ks_matmul_exchange_halves.cu."""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.kronecker.by_teams import ByTeams
from lacuna_kernels.cuda.kronecker.halving import halves_of
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.teams import SHARED_BYTES, STAGE_K, Teams
from lacuna_kernels.cuda.kronecker.way import Sums
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern

_HALVES = {Precision.FP32: 2, Precision.TF32: 1}


@dataclass(frozen=True, slots=True)
class ExchangeHalves(ByTeams):
    """By teams so composed, in one of the two precisions."""

    precision: Precision

    @property
    def name(self) -> str:
        """How the teams are composed."""
        return f"exchange halves {self.teams}"

    @property
    def packing(self) -> str:
        """The order of the weights follows from who has which, and how many halves they have."""
        return f"exchange halves {self.teams.halves} {self.teams.blocks}x{self.teams.own} {self.teams.columns}"

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """One, for its precision."""
        if precision is not self.precision:
            return ()
        constants = {"SPLIT": self.teams.halves, **self.teams.constants()}
        name = "ks_matmul_exchange_halves"
        return (Variant(f"{name}.cu", name, tuple(constants.items()), ("sm_90a",), SHARED_BYTES),)

    def sums(self, problem: Problem) -> Sums:
        """Those of ks_matmul_halves.cu."""
        return Sums.HALVES if self.precision is Precision.FP32 else Sums.HALF

    def pack(self, values: Tensor) -> Tensor:
        """Return uint8: halves by chunk, block, columns, 16 k, l, half and matrices [8 j][8 k]; then scales, fp32.

        Padded with zeros; see ks_matmul_exchange_halves.cu. Within 16 j, places 8 m + 2 t + e of the product are
        j = 4 t + 2 m + e; within 8 k, 2 t + e are k = t + 4 e. Scales are by chunk, block, columns, l and j.
        """
        teams, (a, b, c, d) = self.teams, values.shape
        pattern = KSPattern(a, b, c, d)
        passes, k_stages, chunks = teams.passes(pattern), teams.k_stages(pattern), ceil(d / teams.depth)
        parts, halves, scales = teams.columns // teams.part, *halves_of(values, teams.halves)
        padded = halves.new_zeros(teams.halves, a, passes * teams.columns, k_stages * STAGE_K, chunks * teams.depth)
        padded[:, :, :b, :c, :d] = halves
        # half i pass part t m e step eight e t chunk block l
        sides = (parts, 4, 2, 2, 2 * k_stages, 2, 2, 4, chunks, teams.blocks, teams.own)
        split = padded.view(teams.halves, a, passes, *sides)
        ordered = split.permute(1, 11, 12, 2, 7, 13, 0, 8, 3, 5, 4, 6, 10, 9).contiguous()
        padded_scales = scales.new_zeros(a, passes * teams.columns, chunks * teams.depth)
        padded_scales[:, :b, :d] = scales
        by_column = padded_scales.view(a, passes, teams.columns, chunks, teams.blocks, teams.own)
        by_column = by_column.permute(0, 3, 4, 1, 5, 2).contiguous()
        return torch.cat([ordered.view(torch.uint8).flatten(), by_column.view(torch.uint8).flatten()])

    def operands(self, packed: Tensor, pattern: KSPattern) -> tuple[Tensor, ...]:
        """The halves, and the scales behind them."""
        teams = self.teams
        stages = teams.chunks(pattern) * teams.blocks * teams.passes(pattern) * teams.k_stages(pattern)
        return packed, packed[stages * teams.weight_bytes :]


WAYS = tuple(
    ExchangeHalves(Teams(4, halves, *teams), precision)
    for precision, halves in _HALVES.items()
    for teams in (
        (4, 2, 64, 64, 2, False),
        (8, 2, 64, 64, 2, False),
        (2, 3, 64, 32, 3, True),
        (2, 2, 64, 64, 2, True),
        (2, 1, 128, 64, 2, True),
        (1, 3, 64, 32, 3, True),
        (1, 2, 64, 64, 2, True),
    )
)
