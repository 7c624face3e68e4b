"""Activation functions, alone and as an attribute of the linear ops."""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from lacuna_kernels.graph import Cost, Node
from lacuna_kernels.ops.context import Context
from lacuna_kernels.types import Value, ValueType

DEFAULT_SLOPE = 0.01


class Activation(StrEnum):
    """Elementwise functions; gelu is the exact one, gelu_tanh its tanh form as in GPT-2."""

    RELU = "relu"
    LEAKY_RELU = "leaky_relu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    SILU = "silu"
    SIGMOID = "sigmoid"
    TANH = "tanh"


_FUNCTIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.RELU: torch.relu,
    Activation.GELU: functional.gelu,
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
    Activation.SILU: functional.silu,
    Activation.SIGMOID: torch.sigmoid,
    Activation.TANH: torch.tanh,
}


def activate(x: Tensor, activation: Activation | None, negative_slope: float = DEFAULT_SLOPE) -> Tensor:
    """Apply an activation elementwise, or nothing where there is none."""
    if activation is None:
        return x
    if activation is Activation.LEAKY_RELU:
        return functional.leaky_relu(x, negative_slope)
    return _FUNCTIONS[activation](x)


class ActivationNode(Node):
    """y = f(x), elementwise, on any axis kind."""

    op: Literal["relu", "leaky_relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh"]
    negative_slope: float = Field(DEFAULT_SLOPE, description="for leaky_relu: the slope below zero")

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Return the input's type."""
        return floats(inputs[0])

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """One operation an element, read and written once."""
        return elementwise_cost(inputs[0], rows)

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Return f(x)."""
        (x,) = inputs
        return Value(activate(x.data, Activation(self.op), self.negative_slope), x.offsets, x.coordinates)


def floats(kind: ValueType) -> ValueType:
    """Return the type as it is; raises ValueError if it is not of floating point."""
    if not kind.dtype.is_float:
        raise ValueError(f"needs floating-point input, got {kind}")
    return kind


def elementwise_cost(kind: ValueType, rows: int, reads: int = 1) -> Cost:
    """Cost of an elementwise op with `reads` inputs of one type."""
    elements = rows
    for size in kind.shape:
        elements *= size
    return Cost(elements, (reads + 1) * elements * 4)
