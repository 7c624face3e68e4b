"""What the choice of a kernel for a Kronecker-sparse factor depends on."""

from dataclasses import dataclass
from enum import StrEnum

import torch

from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern


class Layout(StrEnum):
    """Which axis of a matrix is contiguous."""

    FIRST = "first"
    """batch-size-first, as PyTorch has it: x [n, a*c*d], y [n, a*b*d]"""
    LAST = "last"
    """batch-size-last: x [a*c*d, n], y [a*b*d, n]"""


@dataclass(frozen=True, slots=True)
class Problem:
    """One factor times n rows.

    rows     most rows that there are: a count on the device may say fewer
    aligned  whether x, y and the residual start at multiples of 16 bytes
    counted  whether it is for a network, whose rows the device counts: there may be far fewer than `rows`
    """

    pattern: KSPattern
    rows: int
    precision: Precision
    layout: Layout = Layout.FIRST
    aligned: bool = True
    counted: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Type of the elements of x, values and y."""
        return DTYPES[self.precision]

    @property
    def flop(self) -> int:
        """Two for every product."""
        return 2 * self.rows * self.pattern.nonzeros

    @property
    def bytes(self) -> int:
        """x and values read once, y written once."""
        widths = self.pattern.width_in + self.pattern.width_out
        return (self.rows * widths + self.pattern.nonzeros) * self.dtype.itemsize
