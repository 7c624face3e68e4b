"""A chain of Kronecker-sparse factors with bias and activation.

Definitions: "Fast inference with Kronecker-sparse matrices", Gonon, Zheng, Carrivain and Le, arXiv 2405.15013.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lacuna_kernels.graph import Cost, Node, Size
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.context import Context
from lacuna_kernels.ops.linear import features_last, tokens_per_row
from lacuna_kernels.types import Value, ValueType


@dataclass(frozen=True, slots=True)
class KSPattern:
    """Support kron(I_a, ones(b, c), I_d) of one Kronecker-sparse factor K, of shape [a*b*d, a*c*d].

    K[i*b*d + j*d + l, i*c*d + k*d + l] = values[i, j, k, l] for values [a, b, c, d].
    """

    a: int
    b: int
    c: int
    d: int

    def __post_init__(self) -> None:
        if min(self.a, self.b, self.c, self.d) < 1:
            raise ValueError(f"pattern entries must be at least 1, got {self}")

    @property
    def width_in(self) -> int:
        """Columns of K."""
        return self.a * self.c * self.d

    @property
    def width_out(self) -> int:
        """Rows of K."""
        return self.a * self.b * self.d

    @property
    def values(self) -> tuple[int, int, int, int]:
        """Shape of the values."""
        return (self.a, self.b, self.c, self.d)

    @property
    def nonzeros(self) -> int:
        """Number of values."""
        return self.a * self.b * self.c * self.d


def ks_matmul(x: Tensor, values: Tensor) -> Tensor:
    """Multiply by one factor: y = x @ K.T, for x [..., a*c*d] and values [a, b, c, d]; returns [..., a*b*d]."""
    a, b, c, d = values.shape
    blocks = x.reshape(*x.shape[:-1], a, c, d)
    return torch.einsum("abcd,...acd->...abd", values, blocks).reshape(*x.shape[:-1], a * b * d)


class KroneckerLinear(Node):
    """y = f(K_L ... K_1 x + bias); patterns and factors stand in order of application, factors.0 meets x first.

    factors.i [a, b, c, d] of pattern i, bias [a*b*d of the last]
    """

    op: Literal["kronecker_linear"]
    patterns: tuple[tuple[Size, Size, Size, Size], ...] = Field(min_length=1, max_length=64)
    bias: bool = True
    activation: Activation | None = None

    @property
    def chain(self) -> list[KSPattern]:
        """The patterns, in order of application."""
        return [KSPattern(*entries) for entries in self.patterns]

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Replace the features by the width of the last factor; widths of neighbours must fit."""
        kind, chain = features_last(inputs[0]), self.chain
        if chain[0].width_in != kind.channels:
            raise ValueError(f"{chain[0]} needs {chain[0].width_in} features, its input has {kind.channels}")
        for before, after in pairwise(chain):
            if before.width_out != after.width_in:
                raise ValueError(f"{before} gives {before.width_out} features, {after} needs {after.width_in}")
        return replace(kind, shape=(*kind.shape[:-1], chain[-1].width_out), columns=())

    def weight_shapes(self, inputs: Sequence[ValueType]) -> dict[str, tuple[int, ...]]:
        """The values of each factor, and the bias."""
        shapes: dict[str, tuple[int, ...]] = {f"factors.{i}": p.values for i, p in enumerate(self.chain)}
        return shapes | ({"bias": (self.chain[-1].width_out,)} if self.bias else {})

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """2 * rows * a*b*c*d FLOP a factor; input, values and output of every factor once."""
        tokens = rows * tokens_per_row(inputs[0])
        nonzeros = sum(p.nonzeros for p in self.chain)
        widths = sum(p.width_in + p.width_out for p in self.chain)
        return Cost(2 * tokens * nonzeros, 4 * (tokens * widths + nonzeros))

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Apply factor by factor, then bias and activation."""
        (x,) = inputs
        y = x.data
        for i in range(len(self.patterns)):
            y = ks_matmul(y, weights[f"factors.{i}"])
        if self.bias:
            y = y + weights["bias"]
        return Value(activate(y, self.activation), x.offsets, x.coordinates)
