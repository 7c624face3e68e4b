"""Ops that turn scores into probabilities or classes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lacuna_kernels.graph import Cost, Node
from lacuna_kernels.ops.activation import elementwise_cost
from lacuna_kernels.ops.context import Context
from lacuna_kernels.ops.linear import features_last
from lacuna_kernels.types import DType, Value, ValueType


class Softmax(Node):
    """y = exp(x - max) / sum, over the features of each row."""

    op: Literal["softmax"]

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Return the input's type."""
        return features_last(inputs[0])

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """About 5 operations an element."""
        once = elementwise_cost(inputs[0], rows)
        return Cost(5 * once.flop, once.bytes)

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Return torch's softmax over the last axis."""
        (x,) = inputs
        return Value(torch.softmax(x.data, -1), x.offsets, x.coordinates)


class Argmax(Node):
    """The index of the largest feature of each row, the first of equals; int32 without the feature axis."""

    op: Literal["argmax"]

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Drop the features."""
        kind = features_last(inputs[0])
        return replace(kind, shape=kind.shape[:-1], dtype=DType.INT32, columns=())

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """One comparison an element."""
        return elementwise_cost(inputs[0], rows)

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Return the first index of the maximum."""
        (x,) = inputs
        first = (x.data == x.data.amax(-1, keepdim=True)).int().argmax(-1)
        return Value(first.int(), x.offsets, x.coordinates)
