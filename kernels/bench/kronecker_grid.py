"""Which Kronecker-sparse factors are measured, and the least time that each can take."""

import random
from collections.abc import Iterator, Sequence

from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern

REPETITIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Of a and d."""
BLOCKS = (48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Of b and c, where b = c, b = 4c or c = 4b: the grid of arXiv 2405.15013."""
ROWS = 25_088
"""Rows of the same paper: 128 images of 196 tokens."""
SMALL_ROWS = (1, 8, 64, 512, 4096)
MEMORY_BYTES = 60e9
PATTERNS, FEW_PATTERNS = 128, 12
SEED = 2405_15013

PRECISIONS = (Precision.FP32, Precision.TF32, Precision.FP16, Precision.BF16)
FLOP_PER_SECOND = {Precision.FP32: 137e12, Precision.TF32: 411e12, Precision.FP16: 770e12, Precision.BF16: 770e12}
"""Rates of matrix products measured on an H200; that of fp32 is a third of tf32's: three products make one."""
BYTES_PER_SECOND = 4.3e12
"""Rate of a copy measured on an H200, bytes read and bytes written."""
LONG_ROOF_MS = 0.04
"""Shorter problems measure the launch."""


def grid() -> Iterator[KSPattern]:
    """All patterns of the grid."""
    for a in REPETITIONS:
        for b in BLOCKS:
            for c in BLOCKS:
                if b in (c, 4 * c) or c == 4 * b:
                    yield from (KSPattern(a, b, c, d) for d in REPETITIONS)


def memory_bytes(pattern: KSPattern, rows: int, copies: int = 2) -> int:
    """What a measurement in fp32 holds: copies of x, values and y, and what the existing ways copy once more."""
    return 4 * (copies + 1) * (rows * (pattern.width_in + pattern.width_out) + pattern.nonzeros)


def patterns(count: int = PATTERNS) -> list[KSPattern]:
    """The first `count` of a fixed random order of the patterns that fit in memory at ROWS rows."""
    fit = [pattern for pattern in grid() if memory_bytes(pattern, ROWS) <= MEMORY_BYTES]
    random.Random(SEED).shuffle(fit)
    return fit[:count]


def problems(
    chosen: Sequence[KSPattern], rows: Sequence[int], precisions: Sequence[Precision], layouts: Sequence[Layout]
) -> list[Problem]:
    """All combinations, pattern by pattern."""
    return [
        Problem(pattern, n, precision, layout)
        for pattern in chosen
        for n in rows
        for precision in precisions
        for layout in layouts
    ]


def key(problem: Problem) -> str:
    """One line that tells a problem from all others."""
    numbers = ",".join(map(str, problem.pattern.values))
    return f"{numbers} {problem.rows} {problem.precision} {problem.layout}"


def roof_ms(problem: Problem) -> float:
    """The least time: arithmetic at the rate of its type, or x, values and y once through memory."""
    return 1e3 * max(problem.flop / FLOP_PER_SECOND[problem.precision], problem.bytes / BYTES_PER_SECOND)


def density(pattern: KSPattern) -> float:
    """Non-zeros over entries."""
    return 1 / (pattern.a * pattern.d)


def intensity(pattern: KSPattern) -> float:
    """bc/(b+c): products a feature read or written."""
    return pattern.b * pattern.c / (pattern.b + pattern.c)
