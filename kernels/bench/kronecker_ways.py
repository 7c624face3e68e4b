"""Ways to multiply by one Kronecker-sparse factor: ours, and what existed before it.

A way prepares what a network would prepare once (its constants in whatever order it likes) and returns a launch, which
multiplies the operands of one copy and returns y. What it copies from buffer to buffer on every call belongs to that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bench.kronecker_grid import FLOP_PER_SECOND
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker import way as kronecker
from lacuna_kernels.cuda.kronecker.choose import candidates
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem

DENSE_MOST_BYTES = 16e9
DENSE_MOST_MS = 5.0
"""A dense product that cannot be faster than this is not waited for."""

Multiply = Callable[[int], Tensor]


class Skipped(Exception):
    """This way is not measured here; the message says why."""


@dataclass(frozen=True)
class Operands:
    """Copies of the matrices of a problem, and room that the ways share: none of them runs beside another.

    xs      [rows, a*c*d] each, or [a*c*d, rows] batch-size-last
    values  [a, b, c, d] each
    ys      [rows, a*b*d] each, or [a*b*d, rows]
    """

    problem: Problem
    xs: list[Tensor]
    values: list[Tensor]
    ys: list[Tensor]

    @classmethod
    def random(cls, problem: Problem, copies: int, device: str = "cuda") -> "Operands":
        """Normal inputs, values scaled so that y is normal too, y not a number."""
        pattern, dtype = problem.pattern, problem.dtype
        return cls(
            problem,
            [torch.randn(_shape(problem, pattern.width_in), dtype=dtype, device=device) for _ in range(copies)],
            [torch.randn(pattern.values, dtype=dtype, device=device) * pattern.c**-0.5 for _ in range(copies)],
            [
                torch.full(_shape(problem, pattern.width_out), torch.nan, dtype=dtype, device=device)
                for _ in range(copies)
            ],
        )

    @cached_property
    def x_room(self) -> Tensor:
        """As many elements as x."""
        return torch.empty_like(self.xs[0]).view(-1)

    @cached_property
    def y_room(self) -> Tensor:
        """As many elements as y."""
        return torch.empty_like(self.ys[0]).view(-1)


def _shape(problem: Problem, width: int) -> tuple[int, int]:
    return (problem.rows, width) if problem.layout is Layout.FIRST else (width, problem.rows)


def ours(device: Device, o: Operands, way: kronecker.Way | None = None) -> Multiply:
    """Ours, by the best guess or by a named way."""
    chosen = way or candidates(o.problem, device.limits)[0]
    packed = [chosen.pack(values) for values in o.values]
    scratch = torch.empty(chosen.scratch_bytes(o.problem), dtype=torch.uint8, device=o.xs[0].device)
    matrices = [kronecker.Operands(x, y, scratch=scratch) for x, y in zip(o.xs, o.ys, strict=True)]

    def multiply(copy: int) -> Tensor:
        chosen.launch(device, o.problem, packed[copy], matrices[copy])
        return o.ys[copy]

    return multiply


def dense_matrix(values: Tensor) -> Tensor:
    """The factor K as a matrix, [a*b*d, a*c*d]."""
    a, b, c, d = values.shape
    blocks = torch.zeros(a, b, d, a, c, d, dtype=values.dtype, device=values.device)
    blocks.diagonal(dim1=0, dim2=3).diagonal(dim1=1, dim2=3)[:] = values.permute(1, 2, 0, 3)
    return blocks.view(a * b * d, a * c * d)


def dense(o: Operands) -> Multiply:
    """torch.mm by the whole matrix, zeros and all."""
    pattern, element = o.problem.pattern, o.problem.dtype.itemsize
    entries = pattern.width_in * pattern.width_out
    if entries * element * len(o.values) > DENSE_MOST_BYTES:
        raise Skipped(f"the matrix has {entries * element / 1e9:.3g} GB")
    least_ms = 2e3 * o.problem.rows * entries / FLOP_PER_SECOND[o.problem.precision]
    if least_ms > DENSE_MOST_MS:
        raise Skipped(f"its FLOP alone take {least_ms:.3g} ms")
    matrices = [dense_matrix(values) for values in o.values]
    if o.problem.layout is Layout.FIRST:
        return lambda copy: torch.mm(o.xs[copy], matrices[copy].T, out=o.ys[copy])
    return lambda copy: torch.mm(matrices[copy], o.xs[copy], out=o.ys[copy])


def bmm(o: Operands) -> Multiply:
    """One torch.bmm over the a*d blocks; the features of a block are put side by side before, and y's apart after.

    Batch-size-first, rows stay where they are: of the orders that a copy can make and torch.bmm can read, that is the
    one that torch copies fastest.
    """
    if o.problem.layout is Layout.LAST:
        return _bmm_last(o)
    a, b, c, d = o.problem.pattern.values
    if d == 1:
        raise Skipped("d is 1: they are side by side")
    n, count = o.problem.rows, a * d
    weights = [values.permute(0, 3, 2, 1).reshape(count, c, b) for values in o.values]
    x_blocks, y_blocks = o.x_room.view(n, a, d, c), o.y_room.view(n, a, d, b)

    def multiply(copy: int) -> Tensor:
        x_blocks.copy_(o.xs[copy].view(n, a, c, d).transpose(2, 3))
        y = y_blocks.view(n, count, b).transpose(0, 1)
        torch.bmm(x_blocks.view(n, count, c).transpose(0, 1), weights[copy], out=y)
        o.ys[copy].view(n, a, b, d).copy_(y_blocks.transpose(2, 3))
        return o.ys[copy]

    return multiply


def _bmm_last(o: Operands) -> Multiply:
    a, b, c, d = o.problem.pattern.values
    n, count = o.problem.rows, a * d
    weights = [values.permute(0, 3, 1, 2).reshape(count, b, c) for values in o.values]
    x_blocks, y_blocks = o.x_room.view(a, d, c, n), o.y_room.view(a, d, b, n)

    def multiply(copy: int) -> Tensor:
        x_blocks.copy_(o.xs[copy].view(a, c, d, n).transpose(1, 2))
        torch.bmm(weights[copy], x_blocks.view(count, c, n), out=y_blocks.view(count, b, n))
        o.ys[copy].view(a, b, d, n).copy_(y_blocks.transpose(1, 2))
        return o.ys[copy]

    return multiply


def strided(o: Operands) -> Multiply:
    """torch.bmm on views, without a copy: one if d is 1, else one for each i of a or each l of d, if fewer."""
    if o.problem.layout is Layout.LAST:
        return _strided_last(o)
    a, b, c, d = o.problem.pattern.values
    n = o.problem.rows
    if d > 1:
        raise Skipped("the features of a block are d apart")
    weights = [values.view(a, b, c).transpose(1, 2).contiguous() for values in o.values]

    def multiply(copy: int) -> Tensor:
        y = o.ys[copy].view(n, a, b).transpose(0, 1)
        torch.bmm(o.xs[copy].view(n, a, c).transpose(0, 1), weights[copy], out=y)
        return o.ys[copy]

    return multiply


def _strided_last(o: Operands) -> Multiply:
    """Rows of a block are d*n apart; blocks are n apart along d, c*d*n along a."""
    a, b, c, d = o.problem.pattern.values
    order = (0, 3, 1, 2) if a < d else (3, 0, 1, 2)  # calls, blocks of a call, b, c
    weights = [values.permute(order).contiguous() for values in o.values]

    def blocks(matrix: Tensor, width: int) -> Tensor:
        """A view, [calls, blocks of a call, width, n]."""
        by_a = matrix.view(a, width, d, -1).transpose(1, 2)
        return by_a if a < d else by_a.transpose(0, 1)

    def multiply(copy: int) -> Tensor:
        for weight, x, y in zip(weights[copy], blocks(o.xs[copy], c), blocks(o.ys[copy], b), strict=True):
            torch.bmm(weight, x, out=y)
        return o.ys[copy]

    return multiply


def einsum(o: Operands) -> Multiply:
    """torch.einsum; its result is a view in the order that it likes, and copied if that is not y's."""
    a, _, c, d = o.problem.pattern.values
    terms, x_shape = "abcd,nacd->nabd", (-1, a, c, d)
    if o.problem.layout is Layout.LAST:
        terms, x_shape = "abcd,acdn->abdn", (a, c, d, -1)
    shape = o.ys[0].shape
    return lambda copy: torch.einsum(terms, o.values[copy], o.xs[copy].view(x_shape)).reshape(shape)


TORCH_WAYS: dict[str, Callable[[Operands], Multiply]] = {
    "strided bmm": strided,
    "bmm": bmm,
    "dense": dense,
    "einsum": einsum,
}
"""What torch offers, by name; the likely fastest first."""
