"""Dense linear layer on the last axis."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor
from torch.nn import functional

from lacuna_kernels.graph import Cost, Node, Size
from lacuna_kernels.ops.activation import Activation, activate, floats
from lacuna_kernels.ops.context import Context
from lacuna_kernels.types import Axis, Value, ValueType


class Linear(Node):
    """y = f(x @ weight.T + bias), on rows, tokens, points, sites or clouds.

    weight [out_features, features], bias [out_features]
    """

    op: Literal["linear"]
    out_features: Size
    bias: bool = True
    activation: Activation | None = None

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Replace the features by out_features."""
        kind = features_last(inputs[0])
        return replace(kind, shape=(*kind.shape[:-1], self.out_features), columns=())

    def weight_shapes(self, inputs: Sequence[ValueType]) -> dict[str, tuple[int, ...]]:
        """Weight as torch.nn.Linear has it, and bias."""
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, inputs[0].channels)}
        return shapes | ({"bias": (self.out_features,)} if self.bias else {})

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """2 * rows * in * out FLOP; input, weight and output once."""
        tokens = rows * tokens_per_row(inputs[0])
        ci, co = inputs[0].channels, self.out_features
        return Cost(2 * tokens * ci * co, 4 * (tokens * (ci + co) + ci * co))

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Return f(x @ weight.T + bias)."""
        (x,) = inputs
        y = functional.linear(x.data, weights["weight"], weights.get("bias"))
        return Value(activate(y, self.activation), x.offsets, x.coordinates)


def features_last(kind: ValueType) -> ValueType:
    """Return the type as it is; raises ValueError unless it is of floating point with features on the last axis."""
    if kind.axis is Axis.IMAGE or not kind.shape:
        raise ValueError(f"needs rows, tokens, points, sites or clouds of features, got {kind}")
    return floats(kind)


def tokens_per_row(kind: ValueType) -> int:
    """Feature vectors in one row: the tokens of a sequence, else 1."""
    return kind.shape[0] if kind.axis is Axis.SEQUENCE else 1
