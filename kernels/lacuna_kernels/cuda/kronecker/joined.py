"""Factors with a small d as factors with d = 1, batch-size-first: (k, l) and (j, l) are the features of wider blocks.

The blocks [b*d, c*d] are 0 where the l of row and column differ. Nothing need be taken apart, and where memory takes
longer than d times the products it costs nothing to multiply by the zeros. What is not a number spreads over the l of
its row and block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.way import Operands, Sums, Way
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern

_LEAST_WIDTH = 8
_MOST_BYTES = 1 << 28
"""Zeros included, a factor takes no more than that."""


def joined(problem: Problem) -> Problem:
    """The same as if d were 1."""
    a, b, c, d = problem.pattern.values
    return replace(problem, pattern=KSPattern(a, b * d, c * d, 1))


def joined_block(values: Tensor) -> Tensor:
    """The block [b*d, c*d] of the values [b, c, d] of one i."""
    b, c, d = values.shape
    same = torch.eye(d, dtype=values.dtype, device=values.device)
    return (values[:, None] * same[:, None]).reshape(b * d, c * d)  # j, l, k, l of k


@dataclass(frozen=True, slots=True)
class Joined:
    """The factor (a, b, c, d) as (a, b*d, c*d, 1), which `inner` multiplies by in tf32: fp32 has too little to gain."""

    inner: Way

    @property
    def name(self) -> str:
        """The other way's, joined."""
        return f"joined {self.inner.name}"

    @property
    def packing(self) -> str:
        """The other way's, joined."""
        return f"joined {self.inner.packing}"

    def variants(self, precision: Precision) -> Sequence[Variant]:
        """None of its own: the other way names them."""
        return self.inner.variants(precision)

    def sums(self, problem: Problem) -> Sums:
        """As the other way, but over (k, l)."""
        return Sums.TF32_JOINED

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """What the other way takes joined, if that is not too large."""
        p = problem.pattern
        blocks = problem.layout is Layout.FIRST and p.d > 1 and min(p.b, p.c) >= _LEAST_WIDTH
        if not blocks or problem.precision is not Precision.TF32:
            return False
        wide = joined(problem)
        small = wide.pattern.nonzeros * problem.dtype.itemsize <= _MOST_BYTES
        return small and self.inner.fits(wide, limits)

    def seconds(self, problem: Problem, limits: DeviceLimits) -> float:
        """The other way's."""
        return self.inner.seconds(joined(problem), limits)

    def scratch_bytes(self, problem: Problem) -> int:
        """The other way's."""
        return self.inner.scratch_bytes(joined(problem))

    def pack(self, values: Tensor) -> Tensor:
        """As the other way wants the values of (a, b*d, c*d, 1)."""
        return self.inner.pack(torch.stack([joined_block(block) for block in values])[..., None])

    def launch(self, device: Device, problem: Problem, packed: Tensor, operands: Operands) -> None:
        """Enqueue; see Way."""
        self.inner.launch(device, joined(problem), packed, operands)
