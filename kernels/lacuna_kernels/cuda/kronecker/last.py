"""The plain kernel for batch-size-last: the way that always fits there."""

from dataclasses import dataclass
from math import ceil

from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.way import Operands, Sums, arguments
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.graph import Precision

_THREADS = 256
_LARGEST_GRID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Last:
    """One thread makes `js` rows j of one column of y, for one (i, l)."""

    js: int = 8
    packing = "plain"
    name = "last"

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """One a type."""
        constants: tuple[tuple[str, int | str], ...] = (("ELEMENT", ELEMENTS[DTYPES[precision]]), ("JS", self.js))
        return (Variant("ks_matmul_last.cu", "ks_matmul_last", constants),)

    def sums(self, problem: Problem) -> Sums:
        """fp32 multiply-adds."""
        return Sums.FMA

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """Any factor, any number of rows, any alignment."""
        return problem.layout is Layout.LAST

    def seconds(self, problem: Problem, limits: DeviceLimits) -> float:
        """Three loads and conversions a product or so, at 128 a clock and a multiprocessor."""
        return 2e-6 + problem.flop / (limits.multiprocessors * 40 * 1.7e9)

    def scratch_bytes(self, problem: Problem) -> int:
        """None."""
        return 0

    def pack(self, values: Tensor) -> Tensor:
        """As they are."""
        return values.contiguous()

    def launch(self, device: Device, problem: Problem, packed: Tensor, operands: Operands) -> None:
        """Enqueue; see Way."""
        pattern = problem.pattern
        blocks = ceil(problem.rows / _THREADS) * pattern.a * pattern.d * ceil(pattern.b / self.js)
        device.kernel(self.variants(problem.precision)[0])(
            (min(blocks, _LARGEST_GRID), 1, 1),
            (_THREADS, 1, 1),
            operands.x,
            packed,
            *arguments(problem, operands),
        )


WAYS = (Last(),)
