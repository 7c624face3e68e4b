"""Sequences of tokens: made of images, given positions, attended, picked from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from lacuna_kernels.graph import Cost, Node
from lacuna_kernels.ops.activation import elementwise_cost, floats
from lacuna_kernels.ops.context import Context
from lacuna_kernels.types import Axis, Value, ValueType


class ImageToSequence(Node):
    """Pixels, row by row, as tokens: [n, channels, height, width] -> [n, height * width, channels]."""

    op: Literal["image_to_sequence"]

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Sequence of the image's pixels."""
        kind = floats(inputs[0])
        if kind.axis is not Axis.IMAGE:
            raise ValueError(f"needs an image, got {kind}")
        channels, height, width = kind.shape
        return ValueType(Axis.SEQUENCE, (height * width, channels), kind.dtype)

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """No arithmetic; read and written once."""
        return Cost(0, elementwise_cost(inputs[0], rows).bytes)

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Flatten and transpose."""
        return Value(inputs[0].data.flatten(2).transpose(1, 2))


class PrependToken(Node):
    """Put a trained token before the others, as a ViT's class token: weight [features]."""

    op: Literal["prepend_token"]

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """One token more."""
        tokens, features = check_sequence(inputs[0]).shape
        return replace(inputs[0], shape=(tokens + 1, features))

    def weight_shapes(self, inputs: Sequence[ValueType]) -> dict[str, tuple[int, ...]]:
        """The token."""
        return {"weight": (inputs[0].channels,)}

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """No arithmetic; read and written once."""
        return Cost(0, elementwise_cost(inputs[0], rows).bytes)

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Concatenate along the tokens."""
        (x,) = inputs
        token = weights["weight"].expand(len(x.data), 1, -1)
        return Value(torch.cat([token, x.data], 1))


class PositionEmbedding(Node):
    """Add a trained vector to every position: weight [tokens, features]."""

    op: Literal["position_embedding"]

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Return the input's type."""
        return check_sequence(inputs[0])

    def weight_shapes(self, inputs: Sequence[ValueType]) -> dict[str, tuple[int, ...]]:
        """One vector a position."""
        return {"weight": inputs[0].shape}

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """One addition an element."""
        return elementwise_cost(inputs[0], rows)

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Add."""
        return Value(inputs[0].data + weights["weight"])


class Attention(Node):
    """Scaled dot-product attention of several heads, without its linear layers.

    Inputs are queries, keys and values [n, tokens, features] each, or one [n, tokens, 3 * features] with the three
    side by side. Head h owns features h*F/heads to (h + 1)*F/heads; causal: a token sees itself and those before it.
    """

    op: Literal["attention"]
    heads: Annotated[int, Field(ge=1, le=1024)]
    causal: bool = False
    arity: ClassVar[tuple[int, int]] = (1, 3)

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Sequence of the values' features."""
        kinds = [check_sequence(kind) for kind in inputs]
        features = kinds[0].channels // 3 if len(kinds) == 1 else kinds[0].channels
        if len(kinds) == 2 or (len(kinds) == 1 and kinds[0].channels % 3):
            raise ValueError(
                f"needs queries, keys and values, or the three side by side, got {', '.join(map(str, kinds))}"
            )
        if len(kinds) == 3 and (kinds[1].shape != kinds[2].shape or kinds[1].channels != features):
            raise ValueError(f"needs keys and values as wide as the queries, got {', '.join(map(str, kinds))}")
        if features % self.heads:
            raise ValueError(f"{self.heads} heads do not divide {features} features")
        if self.causal and kinds[0].shape[0] != kinds[-1].shape[0]:
            raise ValueError("causal attention needs as many queries as keys")
        return replace(kinds[0], shape=(kinds[0].shape[0], features))

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """4 * tokens * keys * features FLOP a sequence; inputs and output once."""
        tokens, features = self.infer_type(inputs).shape
        keys = inputs[-1].shape[0]
        return Cost(4 * rows * tokens * keys * features, 4 * rows * features * (2 * tokens + 2 * keys))

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Return torch's scaled_dot_product_attention."""
        parts = inputs[0].data.chunk(3, -1) if len(inputs) == 1 else [value.data for value in inputs]
        width = parts[0].shape[-1] // self.heads
        q, k, v = (part.reshape(*part.shape[:2], self.heads, width).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return Value(y.transpose(1, 2).flatten(2))


class SelectToken(Node):
    """One token of each sequence, as a row: [n, tokens, features] -> [n, features]."""

    op: Literal["select_token"]
    index: Annotated[int, Field(ge=0)] = 0

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """A row of the token's features."""
        tokens, features = check_sequence(inputs[0]).shape
        if self.index >= tokens:
            raise ValueError(f"there is no token {self.index} among {tokens}")
        return replace(inputs[0], axis=Axis.ROW, shape=(features,))

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """No arithmetic; one token read and written."""
        return Cost(0, 8 * rows * inputs[0].channels)

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Index the tokens."""
        return Value(inputs[0].data[:, self.index])


def check_sequence(kind: ValueType) -> ValueType:
    """Return the type as it is; raises ValueError unless it is a sequence of floating point."""
    if kind.axis is not Axis.SEQUENCE:
        raise ValueError(f"needs a sequence, got {kind}")
    return floats(kind)
