"""One row per cloud."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lacuna_kernels.graph import Cost, Node
from lacuna_kernels.ops.activation import elementwise_cost, floats
from lacuna_kernels.ops.context import Context
from lacuna_kernels.types import Axis, Value, ValueType


class GlobalPool(Node):
    """The mean or the maximum of each channel over the points or sites of a cloud; zeros for an empty cloud."""

    op: Literal["global_pool"]
    mode: Literal["mean", "max"] = "mean"

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """One row a cloud."""
        kind = floats(inputs[0])
        if not kind.axis.ragged:
            raise ValueError(f"needs points or sites, got {kind}")
        return replace(kind, axis=Axis.CLOUD, level=None, points=None, columns=())

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """One operation an element; every element read once."""
        once = elementwise_cost(inputs[0], rows, reads=0)
        return Cost(once.flop, once.bytes)

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Reduce cloud by cloud."""
        (x,) = inputs
        assert x.offsets is not None
        counts = x.offsets.diff()
        cloud = torch.repeat_interleave(counts)
        pooled = x.data.new_zeros(x.items, x.data.shape[1])
        if self.mode == "max":
            index = cloud[:, None].expand_as(x.data)
            return Value(pooled.scatter_reduce(0, index, x.data, "amax", include_self=False))
        return Value(pooled.index_add(0, cloud, x.data) / counts.clamp(min=1)[:, None])
