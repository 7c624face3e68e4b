"""What every way to multiply by Kronecker-sparse factors has in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from math import isqrt
from typing import Protocol

from torch import Tensor

from lacuna_kernels.cuda.activation import ACTIVATION_CODES
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.launch import Argument
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.activation import DEFAULT_SLOPE, Activation

LARGEST_TILES = 2**30
"""Kernels that count tiles in 32 bits are for fewer."""
_READ_TOGETHER = 1 << 24
"""Bytes of values that the tiles of some rows may read: they stay in the second-level cache for those of the next."""


@cache
def read_together(blocks: int, bytes_each: int) -> int:
    """How many blocks should be multiplied by the same rows before the next rows come: a divisor of their number."""
    small = [k for k in range(1, isqrt(blocks) + 1) if blocks % k == 0]
    divisors = (*small, *(blocks // k for k in small))
    return max(k for k in divisors if k == 1 or k * bytes_each <= _READ_TOGETHER)


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What happens to the sums before they are written: y = f(sums + bias + residual), in fp32.

    bias      fp32 [width_out], or None
    residual  of y's type and shape, or None; may be y itself
    """

    bias: Tensor | None = None
    residual: Tensor | None = None
    activation: Activation | None = None
    negative_slope: float = DEFAULT_SLOPE


PLAIN = Epilogue()


@dataclass(frozen=True, slots=True)
class Operands:
    """The matrices of a launch, contiguous, of the problem's type and layout.

    x        [rows, a*c*d], or [a*c*d, rows] batch-size-last; chains of few rows take fp32 for x and y too
    y        [rows, a*b*d], or [a*b*d, rows]; must not overlap x
    count    int32 [1] on the device: rows in use; what is past them in x does not matter, and in y stays. None: all
    scratch  uint8, as many as the way asks for, of any content
    """

    x: Tensor
    y: Tensor
    epilogue: Epilogue = PLAIN
    count: Tensor | None = None
    scratch: Tensor | None = None


def arguments(problem: Problem, operands: Operands) -> tuple[Argument, ...]:
    """What kernels for one factor are told after x and the values: bias ... negative_slope, see ks_matmul_simt.cu."""
    epilogue = operands.epilogue
    return (
        epilogue.bias,
        epilogue.residual,
        operands.y,
        operands.count,
        problem.rows,
        *problem.pattern.values,
        ACTIVATION_CODES[epilogue.activation],
        float(epilogue.negative_slope),
    )


class Sums(StrEnum):
    """How the products of one output are added up; ways that share it give the same sums, bit by bit.

    So a way may be chosen by the number of rows without a row's bits depending on the rows beside it. Only in 16 bits,
    `turned` rounds sums before its epilogue, `chain` and `exchange` before their residual: there bits may differ by
    that rounding.
    """

    FMA = "fma"
    """Fused multiply-adds in fp32, over k upwards."""
    MMA = "mma"
    """16-bit products on the tensor cores, 16 of k at a time, upwards."""
    SEMI_STRUCTURED = "semi-structured"
    """16-bit products on the sparse tensor cores, 32 of (k, l) at a time, upwards."""
    SPLIT = "split"
    """fp32 as three tf32 products on the tensor cores, small ones first, gathered in fp32 every 32 of k, upwards."""
    TF32 = "tf32"
    """One tf32 product on the tensor cores, 8 of k at a time, upwards."""
    TF32_JOINED = "tf32 joined"
    """As TF32, over (k, l), those of other l by zeros."""
    HALVES = "halves"
    """fp32 as three products of scaled fp16 halves on the tensor cores, gathered in fp32 every 16 of k, upwards."""
    HALF = "half"
    """tf32 as one product of scaled fp16 on the tensor cores, gathered in fp32 every 16 of k, upwards."""
    HALVES_OF_32 = "halves of 32"
    """As HALVES, every 32 of k."""
    HALF_OF_32 = "half of 32"
    """As HALF, every 32 of k."""
    CUBLAS = "cublas"
    """As cuBLAS likes, which may depend on the number of rows."""


class Way(Protocol):
    """One way to compute y = f(K x + bias + residual) for one factor K: a kernel with its constants, frozen."""

    @property
    def name(self) -> str:
        """How people tell it from others, as in a measured table."""
        ...

    @property
    def packing(self) -> str:
        """Names what `pack` returns: equal for ways that want the values alike."""
        ...

    def variants(self, precision: Precision) -> Sequence[Variant]:
        """All that it may ask the compiler for in this precision; none if it is not for it."""
        ...

    def sums(self, problem: Problem) -> Sums:
        """How it adds up."""
        ...

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """Whether it can compute this on such a device."""
        ...

    def seconds(self, problem: Problem, limits: DeviceLimits) -> float:
        """A prediction, good enough to order the ways that fit."""
        ...

    def scratch_bytes(self, problem: Problem) -> int:
        """Device memory that a launch may write for itself."""
        ...

    def pack(self, values: Tensor) -> Tensor:
        """Put the values [a, b, c, d], on the device and of the problem's type, in the order that the kernel reads."""
        ...

    def launch(self, device: Device, problem: Problem, packed: Tensor, operands: Operands) -> None:
        """Enqueue; neither allocates nor synchronises, but for a workspace that cuBLAS may make once."""
        ...


class ChainWay(Protocol):
    """One way to apply several neighbouring factors in one kernel, batch-size-first.

    As Way, for the problems of the factors in order of application. The epilogue belongs to the last factor; between
    factors values are rounded to x's type, so that the bits are those of one launch a factor.
    """

    @property
    def name(self) -> str:
        """How people tell it from others."""
        ...

    @property
    def packing(self) -> str:
        """Names what `pack` returns."""
        ...

    def variants(self, precision: Precision) -> Sequence[Variant]:
        """All that it may ask the compiler for in this precision."""
        ...

    def sums(self, problem: Problem) -> Sums:
        """How it adds up the products of each factor."""
        ...

    def fits(self, problems: Sequence[Problem], limits: DeviceLimits) -> bool:
        """Whether it can compute this on such a device."""
        ...

    def seconds(self, problems: Sequence[Problem], limits: DeviceLimits) -> float:
        """A prediction."""
        ...

    def scratch_bytes(self, problems: Sequence[Problem]) -> int:
        """Device memory that a launch may write for itself."""
        ...

    def pack(self, factors: Sequence[Tensor]) -> Tensor:
        """Put the values of all factors in the order that the kernel reads."""
        ...

    def launch(self, device: Device, problems: Sequence[Problem], packed: Tensor, operands: Operands) -> None:
        """Enqueue; neither allocates nor synchronises."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """A Way as a ChainWay for one factor."""

    way: Way

    @property
    def name(self) -> str:
        """The way's."""
        return self.way.name

    @property
    def packing(self) -> str:
        """The way's."""
        return self.way.packing

    def variants(self, precision: Precision) -> Sequence[Variant]:
        """The way's."""
        return self.way.variants(precision)

    def sums(self, problem: Problem) -> Sums:
        """The way's."""
        return self.way.sums(problem)

    def fits(self, problems: Sequence[Problem], limits: DeviceLimits) -> bool:
        """One factor that the way fits."""
        return len(problems) == 1 and self.way.fits(problems[0], limits)

    def seconds(self, problems: Sequence[Problem], limits: DeviceLimits) -> float:
        """The way's."""
        return self.way.seconds(problems[0], limits)

    def scratch_bytes(self, problems: Sequence[Problem]) -> int:
        """The way's."""
        return self.way.scratch_bytes(problems[0])

    def pack(self, factors: Sequence[Tensor]) -> Tensor:
        """The way's."""
        return self.way.pack(factors[0])

    def launch(self, device: Device, problems: Sequence[Problem], packed: Tensor, operands: Operands) -> None:
        """The way's."""
        self.way.launch(device, problems[0], packed, operands)
