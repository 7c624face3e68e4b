"""Multiplying by Kronecker-sparse factors, alone and in chains: the best way for each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.choose import MEASURED_NOTHING, VARIANTS, Stage, candidates, stages
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.table import Table
from lacuna_kernels.cuda.kronecker.way import PLAIN, Epilogue, Operands, Way
from lacuna_kernels.cuda.precision import NATIVE
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern

__all__ = ["VARIANTS", "Chain", "Epilogue", "ks_matmul"]

_VECTOR_BYTES = 16


def ks_matmul(
    device: Device,
    x: Tensor,
    values: Tensor,
    y: Tensor,
    epilogue: Epilogue = PLAIN,
    *,
    count: Tensor | None = None,
    layout: Layout = Layout.FIRST,
    precision: Precision | None = None,
    way: Way | None = None,
) -> None:
    """Enqueue y = f(x @ K.T + bias + residual) for one factor K; see KSPattern.

    x          [rows, a*c*d]   fp32, fp16 or bf16, contiguous; batch-size-last [a*c*d, rows]
    values     [a, b, c, d]    of x's type
    y          [rows, a*b*d]   of x's type, contiguous; must not overlap x; batch-size-last [a*b*d, rows]
    count      int32 [1] on the device: rows in use; what is past them in x does not matter, and in y stays. None: all
    precision  tf32 for fp32 elements on tensor cores; by default that of the elements
    way        instead of the best guess

    The values are packed and memory is allocated on every call: who multiplies by them again calls `Way.pack` once
    and `Way.launch`.
    """
    pattern = KSPattern(*values.shape)
    matrices = [matrix for matrix in (x, y, epilogue.residual) if matrix is not None]
    problem = Problem(
        pattern,
        rows=x.shape[0] if layout is Layout.FIRST else x.shape[1],
        precision=precision or NATIVE[x.dtype],
        layout=layout,
        aligned=all(matrix.data_ptr() % _VECTOR_BYTES == 0 for matrix in matrices),
        counted=count is not None,
    )
    way = way or candidates(problem, device.limits)[0]
    scratch = torch.empty(way.scratch_bytes(problem), dtype=torch.uint8, device=x.device)
    way.launch(device, problem, way.pack(values), Operands(x, y, epilogue, count, scratch))


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of factors with its stages chosen and its values packed; factors[0] meets x first.

    stages  the launches, in order
    packed  by stage, what the kernel reads of the values
    """

    stages: Sequence[Stage]
    packed: Sequence[Tensor]

    @classmethod
    def of(
        cls,
        limits: DeviceLimits,
        problems: Sequence[Problem],
        pack: Callable[[Stage], Tensor],
        table: Table = MEASURED_NOTHING,
    ) -> "Chain":
        """Choose the stages for the problems of the factors; `pack` returns what a stage reads, made once."""
        chosen = stages(problems, limits, table)
        return cls(chosen, [pack(stage) for stage in chosen])

    @property
    def between(self) -> tuple[int, int]:
        """Elements that the two buffers between the stages must hold."""
        sizes = [stage.last.rows * stage.last.pattern.width_out for stage in self.stages[:-1]]
        return max(sizes[0::2], default=0), max(sizes[1::2], default=0)

    @property
    def scratch_bytes(self) -> int:
        """Bytes that a stage may write for itself."""
        return max(stage.scratch_bytes for stage in self.stages)

    def launch(self, device: Device, operands: Operands, between: tuple[Tensor, Tensor]) -> None:
        """Enqueue stage after stage; the epilogue belongs to the last factor.

        between  two flat buffers of x's type

        Between factors values are rounded to x's type.
        """
        x = operands.x
        for index, (stage, packed) in enumerate(zip(self.stages[:-1], self.packed, strict=False)):
            rows, width = stage.last.rows, stage.last.pattern.width_out
            y = between[index % 2][: rows * width].view(rows, width)
            stage.launch(device, packed, Operands(x, y, count=operands.count, scratch=operands.scratch))
            x = y
        self.stages[-1].launch(device, self.packed[-1], replace(operands, x=x))
