"""cuBLAS, on views without a copy, where blocks are wide: the host must know the rows, as cuBLAS cannot count."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.way import Epilogue, Operands, Sums
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.activation import Activation
from lacuna_kernels.ops.kronecker_linear import KSPattern

_MOST_CALLS = 64
_CALL_SECONDS = 8e-6
_MULTIPROCESSORS = 132
"""Of the GPU whose rates these are."""
_SWITCHES: dict[Precision, tuple[str, object]] = {
    Precision.TF32: (
        ("fp32_precision", "tf32") if hasattr(torch.backends.cuda.matmul, "fp32_precision") else ("allow_tf32", True)
    ),
    Precision.FP16: ("allow_fp16_reduced_precision_reduction", False),
    Precision.BF16: ("allow_bf16_reduced_precision_reduction", False),
}
"""For tf32, by its name in the torch at hand, and for sums in fp32 whatever is split."""
_LEAST_SIDE, _LEAST_ROWS = 128, 4096
_LONG_SUMS = (128, 512)
"""b and c of blocks that are not wide, but of which `tma` took 1.04 and 1.07 times as long at (6, 128, 512, 1)."""
_IN_PLACE: dict[Activation, Callable[[Tensor, float], Tensor]] = {
    Activation.RELU: lambda y, _: torch.relu_(y),
    Activation.LEAKY_RELU: torch.nn.functional.leaky_relu_,
    Activation.GELU: lambda y, _: torch.ops.aten.gelu_(y),
    Activation.GELU_TANH: lambda y, _: torch.ops.aten.gelu_(y, approximate="tanh"),
    Activation.SILU: lambda y, _: torch.nn.functional.silu(y, inplace=True),
    Activation.SIGMOID: lambda y, _: torch.sigmoid_(y),
    Activation.TANH: lambda y, _: torch.tanh_(y),
}


@dataclass(frozen=True, slots=True)
class Cublas:
    """torch.baddbmm: one call for all blocks if d is 1, else batch-size-last one for each i of a or each l of d.

    Sums are rounded to y's type before the bias, and before the activation. A switch of torch for all its products is
    set meanwhile: in tf32 no other thread of the process should multiply in fp32 by torch at that time.
    """

    @property
    def name(self) -> str:
        """There is but one."""
        return "cublas"

    @property
    def packing(self) -> str:
        """There is but one."""
        return "cublas"

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """None: nothing is to be compiled."""
        return ()

    def sums(self, problem: Problem) -> Sums:
        """As cuBLAS likes."""
        return Sums.CUBLAS

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """Wide blocks and many rows that few calls can view; not fp32, where halves are faster, nor counted rows."""
        p = problem.pattern
        large = min(p.b, p.c) >= _LEAST_SIDE and problem.rows >= _LEAST_ROWS
        views = p.d == 1 or (problem.layout is Layout.LAST and min(p.a, p.d) <= _MOST_CALLS)
        return large and views and not problem.counted and problem.precision is not Precision.FP32

    def seconds(self, problem: Problem, limits: DeviceLimits) -> float:
        """Of an H200: the peak rates where it was as fast as any, else rates by which others are as fast or faster."""
        tf32, ahead = problem.precision is Precision.TF32, _is_ahead(problem)
        rate = (450e12 if ahead else 220e12) if tf32 else (770e12 if ahead else 450e12)
        seconds = max(problem.flop / rate, problem.bytes / (4.3e12 if ahead else 2.6e12))
        return _CALL_SECONDS * _calls(problem) + seconds * _MULTIPROCESSORS / limits.multiprocessors

    def scratch_bytes(self, problem: Problem) -> int:
        """None."""
        return 0

    def pack(self, values: Tensor) -> Tensor:
        """As they are, by call and block: [a, d, b, c] or [d, a, b, c], the longer side inside."""
        a, _, _, d = values.shape
        return values.permute((0, 3, 1, 2) if a < d else (3, 0, 1, 2)).contiguous()

    def launch(self, device: Device, problem: Problem, packed: Tensor, operands: Operands) -> None:
        """Enqueue; see Way."""
        assert operands.count is None
        if not problem.rows:
            return
        p, epilogue, y = problem.pattern, operands.epilogue, operands.y
        before = y if epilogue.residual is None else epilogue.residual
        views = (
            _blocks(matrix, p, width, problem.layout) for matrix, width in ((operands.x, p.c), (y, p.b), (before, p.b))
        )
        with _products(problem.precision):
            for weights, x_blocks, y_blocks, added in zip(packed, *views, strict=True):
                torch.baddbmm(added, weights, x_blocks, beta=epilogue.residual is not None, out=y_blocks)
        _finish(y, epilogue, problem.layout)


def _is_ahead(problem: Problem) -> bool:
    """Whether it was as fast as any of ours, or faster, on an H200.

    In tf32 that is for all blocks of 512 and more batch-size-last, and side by side (d = 1) for long and narrow ones;
    in 16 bits for blocks of 512 and more side by side, but batch-size-first not for those of 768 and more.
    """
    p = problem.pattern
    narrow, wide = sorted((p.b, p.c))
    first = problem.layout is Layout.FIRST  # d is 1
    if problem.precision is Precision.TF32:
        return narrow < 512 and wide >= 768 if first else narrow >= 512 or (p.d == 1 and wide >= 1024)
    if first:
        return 512 <= narrow < 768
    return p.d == 1 and (narrow >= 512 or (p.b, p.c) == _LONG_SUMS)


def _calls(problem: Problem) -> int:
    return min(problem.pattern.a, problem.pattern.d)


def _blocks(matrix: Tensor, p: KSPattern, width: int, layout: Layout) -> Tensor:
    """A view, [calls, blocks of a call, width, rows]."""
    rows = matrix.shape[1] if layout is Layout.LAST else len(matrix)
    if layout is Layout.FIRST:  # d is 1
        return matrix.view(1, rows, p.a, width).permute(0, 2, 3, 1)
    by_a = matrix.view(p.a, width, p.d, rows).transpose(1, 2)
    return by_a if p.a < p.d else by_a.transpose(0, 1)


@contextmanager
def _products(precision: Precision) -> Iterator[None]:
    """Set torch's switch for all its products, as long as it takes to enqueue one."""
    name, value = _SWITCHES[precision]
    switches = torch.backends.cuda.matmul
    before = getattr(switches, name)
    setattr(switches, name, value)
    try:
        yield
    finally:
        setattr(switches, name, before)


def _finish(y: Tensor, epilogue: Epilogue, layout: Layout) -> None:
    """What baddbmm left, in place."""
    if epilogue.bias is not None:
        y.add_(epilogue.bias if layout is Layout.FIRST else epilogue.bias.view(-1, 1))
    if epilogue.activation is not None:
        _IN_PLACE[epilogue.activation](y, epilogue.negative_slope)
