"""Normalisations with trained statistics or per row."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from lacuna_kernels.graph import Cost, Node
from lacuna_kernels.ops.activation import elementwise_cost, floats
from lacuna_kernels.ops.context import Context
from lacuna_kernels.ops.linear import features_last
from lacuna_kernels.types import Value, ValueType


class LayerNorm(Node):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, over the features of each row."""

    op: Literal["layer_norm"]
    eps: float = Field(1e-5, gt=0)

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Return the input's type."""
        return features_last(inputs[0])

    def weight_shapes(self, inputs: Sequence[ValueType]) -> dict[str, tuple[int, ...]]:
        """Weight and bias by feature."""
        return {"weight": (inputs[0].channels,), "bias": (inputs[0].channels,)}

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """About 8 operations an element."""
        once = elementwise_cost(inputs[0], rows)
        return Cost(8 * once.flop, once.bytes)

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Return torch's layer norm over the last axis."""
        (x,) = inputs
        y = functional.layer_norm(x.data, x.data.shape[-1:], weights["weight"], weights["bias"], self.eps)
        return Value(y, x.offsets, x.coordinates)


class BatchNorm(Node):
    """y = (x - running_mean) / sqrt(running_var + eps) * weight + bias, by channel, with trained statistics."""

    op: Literal["batch_norm"]
    eps: float = Field(1e-5, gt=0)

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Return the input's type."""
        return floats(inputs[0])

    def weight_shapes(self, inputs: Sequence[ValueType]) -> dict[str, tuple[int, ...]]:
        """Weight, bias and the running statistics, by channel."""
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (inputs[0].channels,))

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """A multiplication and an addition an element."""
        once = elementwise_cost(inputs[0], rows)
        return Cost(2 * once.flop, once.bytes)

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Scale and shift by channel: axis 1 of images, else the last."""
        (x,) = inputs
        scale, shift = batch_norm_affine(weights, self.eps)
        if x.data.ndim == 4:  # only images have four axes
            scale, shift = scale[:, None, None], shift[:, None, None]
        return Value(x.data * scale + shift, x.offsets, x.coordinates)


def batch_norm_affine(weights: Mapping[str, Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """Return (scale, shift) by channel, so that batch_norm(x) = x * scale + shift."""
    scale = weights["weight"] / torch.sqrt(weights["running_var"] + eps)
    return scale, weights["bias"] - weights["running_mean"] * scale
