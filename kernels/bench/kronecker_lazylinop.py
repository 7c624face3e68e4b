"""The kernel of lazylinop (1.24), the published one of arXiv 2405.15013, as a way to compare with.

lazylinop chooses the tile sizes and writes the source, which is compiled once and launched here on our stream. Its own
launch allocates and waits for the device on every call, which is not what is to be measured.
"""

import hashlib
import importlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from torch import Tensor

from bench.kronecker_ways import Multiply, Operands, Skipped
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern

LEAST_ROWS = 64
_SHARED_BYTES, _THREADS = 49_152, 1024
_BLOCK, _GRID = (1024, 1024, 64), (2**31 - 1, 65_535, 65_535)


@dataclass(frozen=True, slots=True)
class Generated:
    """A source that lazylinop wrote, with the launch that belongs to it."""

    variant: Variant
    grid: tuple[int, int, int]
    block: tuple[int, int, int]


def _library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what it could do with other packages
        return importlib.import_module("lazylinop.butterfly.ksm")


@cache
def generated(pattern: KSPattern, rows: int, dtype: torch.dtype) -> Generated:
    """Have lazylinop choose and write; raises Skipped where it cannot, or counts past 32 bits."""
    if rows < LEAST_ROWS:
        raise Skipped(f"its search for tile sizes takes many seconds under {LEAST_ROWS} rows")
    if rows * max(pattern.width_in, pattern.width_out) >= 2**31:
        raise Skipped("it counts elements in 32 bits")
    library = _library()
    try:
        tile, _, lines, _ = library._modify_template(
            *pattern.values,
            rows,
            (dtype, dtype),
            _SHARED_BYTES,
            _BLOCK,
            _GRID,
            _THREADS,
            (None, None),
            "cuh",
        )
    except Exception as error:
        raise Skipped(f"lazylinop: {error!r}") from error
    text = "".join(lines)
    source = Path(gettempdir()) / f"lazylinop-{hashlib.sha256(text.encode()).hexdigest()[:16]}.cu"
    source.write_text(text)
    grid = (ceil(rows / tile[0]), ceil(pattern.width_out / tile[2]), 1)
    return Generated(Variant(str(source), "ksmm"), grid, (tile[10], tile[11], 1))


def available() -> bool:
    """Whether lazylinop can be imported."""
    try:
        _library()
    except ImportError:
        return False
    return True


def compile_all(device: Device, problems: Iterable[Problem]) -> int:
    """Compile what the problems need, side by side; return how many sources there are."""
    wanted: dict[Variant, None] = {}
    for problem in problems:
        if problem.precision is not Precision.TF32:
            try:
                wanted[generated(problem.pattern, problem.rows, problem.dtype).variant] = None
            except Skipped:
                continue
    device.compiler.images([(variant, device.limits.architecture) for variant in wanted])
    return len(wanted)


def lazylinop(device: Device, o: Operands) -> Multiply:
    """Its kernel, which is batch-size-last; batch-size-first between two transpositions."""
    if o.problem.precision is Precision.TF32:
        raise Skipped("it has no tf32")
    if not available():
        raise Skipped("lazylinop is not installed")
    pattern, n = o.problem.pattern, o.problem.rows
    made = generated(pattern, n, o.problem.dtype)
    kernel = device.kernel(made.variant)
    weights = [values.permute(0, 1, 3, 2).contiguous() for values in o.values]

    def last(copy: int, x: Tensor, y: Tensor) -> Tensor:
        kernel(made.grid, made.block, weights[copy], x, y, *pattern.values, n)
        return y

    if o.problem.layout is Layout.LAST:
        return lambda copy: last(copy, o.xs[copy], o.ys[copy])
    x_last, y_last = o.x_room.view(pattern.width_in, n), o.y_room.view(pattern.width_out, n)

    def first(copy: int) -> Tensor:
        x_last.copy_(o.xs[copy].T)
        return o.ys[copy].copy_(last(copy, x_last, y_last).T)

    return first
