"""Ops that join several values of the same rows, tokens, pixels, points or sites."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lacuna_kernels.graph import Cost, Node
from lacuna_kernels.ops.activation import elementwise_cost, floats
from lacuna_kernels.ops.context import Context
from lacuna_kernels.types import Axis, Value, ValueType


class Add(Node):
    """y = x_0 + x_1 + ..., of equal types."""

    op: Literal["add"]
    arity: ClassVar[tuple[int, int]] = (2, 16)

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Return the common type."""
        check_same_rows(inputs)
        if len({kind.shape for kind in inputs}) > 1:
            raise ValueError(f"needs inputs of one shape, got {', '.join(map(str, inputs))}")
        return replace(floats(inputs[0]), columns=())

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """One addition an element and further input."""
        once = elementwise_cost(inputs[0], rows, reads=len(inputs))
        return Cost((len(inputs) - 1) * once.flop, once.bytes)

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Sum in the order of the inputs."""
        total = inputs[0].data
        for value in inputs[1:]:
            total = total + value.data
        return Value(total, inputs[0].offsets, inputs[0].coordinates)


class Concat(Node):
    """Join channels: axis 1 of images, else the last, in the order of the inputs."""

    op: Literal["concat"]
    arity: ClassVar[tuple[int, int]] = (2, 16)

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Add up the channels."""
        check_same_rows(inputs)
        first, channels = floats(inputs[0]), sum(kind.channels for kind in inputs)
        if first.axis is Axis.IMAGE:
            rest, shape = {kind.shape[1:] for kind in inputs}, (channels, *first.shape[1:])
        else:
            rest, shape = {kind.shape[:-1] for kind in inputs}, (*first.shape[:-1], channels)
        if len(rest) > 1:
            raise ValueError(f"needs inputs that differ in channels only, got {', '.join(map(str, inputs))}")
        return replace(first, shape=shape, columns=())

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """No arithmetic; every input read and written once."""
        return Cost(0, sum(elementwise_cost(kind, rows).bytes for kind in inputs))

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Return torch.cat along the channels."""
        axis = 1 if inputs[0].data.ndim == 4 else -1
        joined = torch.cat([value.data for value in inputs], axis)
        return Value(joined, inputs[0].offsets, inputs[0].coordinates)


def check_same_rows(inputs: Sequence[ValueType]) -> None:
    """Raise ValueError unless row i of every input speaks of the same thing: same axis, level, cloud and type."""
    first = inputs[0]
    for other in inputs[1:]:
        if other.axis is not first.axis or other.dtype is not first.dtype or other.points != first.points:
            raise ValueError(f"needs inputs of one kind, got {first} and {other}")
        if other.level is not None and first.level is not None and other.level.name != first.level.name:
            raise ValueError(
                f"needs inputs on the same sites, got those of {first.level.name!r} and {other.level.name!r}"
            )
