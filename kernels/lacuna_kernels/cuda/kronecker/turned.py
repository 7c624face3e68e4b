"""Factors with d > 1 as factors with d = 1, batch-size-first: turn the rows, multiply by another way, turn them back.

Two more passes over x and y: it pays for wide blocks, where arithmetic takes longer than that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ACTIVATION_CODES, ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.way import Operands, Sums, Way
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern

_THREADS = 256
_VECTOR_BYTES = 16
_SHARED_BYTES = 44 * 1024
"""What a block turns at once: at least a vector of k by all l."""
_PAD_BYTES = 4
_GAP = 1
"""Vectors that may be left free after d of them: ks_turn_in."""
_SCRATCH_BYTES = 1 << 29
"""Turned copies of a part of the batch take so much at most, unless that were too few rows to keep a device busy."""
_LEAST_ROWS = 256


@dataclass(frozen=True, slots=True)
class Part:
    """Matrices [length, d] that one block turns: `group` whole ones, or `chunk` rows of one.

    Lines of `length` are kept PAD bytes apart, so that banks differ.
    """

    length: int
    d: int
    group: int
    chunk: int

    @classmethod
    def of(cls, length: int, d: int, size: int) -> "Part":
        """As much as fits the shared memory, for elements of `size` bytes, in even chunks of whole vectors."""
        vector, line = _VECTOR_BYTES // size, _SHARED_BYTES // (d + _GAP)
        if (whole := length * size + _PAD_BYTES) <= line:
            return cls(length, d, line // whole, length)
        chunks = ceil(length / ((line - _PAD_BYTES) // _VECTOR_BYTES * vector))
        return cls(length, d, 1, ceil(length / chunks / vector) * vector)

    def blocks(self, matrices: int) -> int:
        """Blocks that turn so many matrices."""
        return ceil(matrices / self.group) * ceil(self.length / self.chunk)


@dataclass(frozen=True, slots=True)
class Turned:
    """The factor (a, b, c, d) as (a*d, b, c, 1), which `inner` multiplies by."""

    inner: Way

    @property
    def name(self) -> str:
        """The other way's, turned."""
        return f"turned {self.inner.name}"

    @property
    def packing(self) -> str:
        """The other way's, turned."""
        return f"turned {self.inner.packing}"

    def variants(self, precision: Precision) -> Sequence[Variant]:
        """The two turns, if the other way is for this precision; its own it names itself."""
        if not self.inner.variants(precision):
            return ()
        return tuple(_variant(function, DTYPES[precision]) for function in ("ks_turn_in", "ks_turn_out"))

    def sums(self, problem: Problem) -> Sums:
        """The other way's."""
        return self.inner.sums(_turned(problem))

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """Blocks of whole vectors, in aligned rows."""
        pattern, vector = problem.pattern, _VECTOR_BYTES // problem.dtype.itemsize
        whole = problem.aligned and pattern.b % vector == 0 == pattern.c % vector
        small = (_VECTOR_BYTES + _PAD_BYTES) * (pattern.d + _GAP) <= _SHARED_BYTES
        first = problem.layout is Layout.FIRST and pattern.d > 1
        return first and whole and small and self.inner.fits(_turned(problem), limits)

    def seconds(self, problem: Problem, limits: DeviceLimits) -> float:
        """The other way's, x and y read and written once more, and some launches."""
        parts = ceil(problem.rows / _rows_at_once(problem))
        return self.inner.seconds(_turned(problem), limits) + 2 * problem.bytes / 2.8e12 + parts * 6e-6

    def scratch_bytes(self, problem: Problem) -> int:
        """Turned rows of x and of y, and how many of them are in use."""
        return _rows_at_once(problem) * _scratch_rows_bytes(problem) + _VECTOR_BYTES

    def pack(self, values: Tensor) -> Tensor:
        """As the other way wants the values of (a*d, b, c, 1)."""
        a, b, c, d = values.shape
        return self.inner.pack(values.permute(0, 3, 1, 2).reshape(a * d, b, c, 1).contiguous())

    def launch(self, device: Device, problem: Problem, packed: Tensor, operands: Operands) -> None:
        """Enqueue, part after part of the batch; see Way."""
        assert operands.scratch is not None
        p, dtype, rows = problem.pattern, problem.dtype, _rows_at_once(problem)
        used = operands.scratch[:_VECTOR_BYTES].view(torch.int32)[:1]
        turned = operands.scratch[_VECTOR_BYTES:].view(dtype)
        turned_x = turned[: rows * p.width_in].view(rows, p.width_in)
        turned_y = turned[rows * p.width_in :][: rows * p.width_out].view(rows, p.width_out)
        reading, writing = Part.of(p.c, p.d, dtype.itemsize), Part.of(p.b, p.d, dtype.itemsize)
        turn_in, turn_out = (device.kernel(_variant(name, dtype)) for name in ("ks_turn_in", "ks_turn_out"))
        epilogue = operands.epilogue
        for first, size in _parts(problem.rows, rows):
            place = (first, size, p.a)
            grid = (reading.blocks(size * p.a), 1, 1)
            turn_in(
                grid, (_THREADS, 1, 1), operands.x, turned_x, operands.count, used, *place, p.c, p.d, *_split(reading)
            )
            inner = replace(_turned(problem), rows=size)
            self.inner.launch(device, inner, packed, Operands(turned_x[:size], turned_y[:size], count=used))
            turn_out(
                (writing.blocks(size * p.a), 1, 1),
                (_THREADS, 1, 1),
                turned_y,
                epilogue.bias,
                epilogue.residual,
                operands.y,
                operands.count,
                *place,
                p.b,
                p.d,
                *_split(writing),
                ACTIVATION_CODES[epilogue.activation],
                float(epilogue.negative_slope),
            )


def _turned(problem: Problem) -> Problem:
    p = problem.pattern
    return replace(problem, pattern=KSPattern(p.a * p.d, p.b, p.c, 1))


def _scratch_rows_bytes(problem: Problem) -> int:
    return (problem.pattern.width_in + problem.pattern.width_out) * problem.dtype.itemsize


def _rows_at_once(problem: Problem) -> int:
    return max(1, min(problem.rows, max(_LEAST_ROWS, _SCRATCH_BYTES // _scratch_rows_bytes(problem))))


def _parts(rows: int, at_once: int) -> Iterator[tuple[int, int]]:
    for first in range(0, rows, at_once):
        yield first, min(at_once, rows - first)


def _split(part: Part) -> tuple[int, int]:
    return part.group, part.chunk


def _variant(function: str, dtype: torch.dtype) -> Variant:
    return Variant("ks_turn.cu", function, (("ELEMENT", ELEMENTS[dtype]),), dynamic_shared_bytes=_SHARED_BYTES)
