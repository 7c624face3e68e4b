"""Features picked by their place: permutations, and widths that are cut or padded with zeros."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lacuna_kernels.graph import Cost, Node
from lacuna_kernels.ops.activation import elementwise_cost
from lacuna_kernels.ops.context import Context
from lacuna_kernels.ops.linear import features_last
from lacuna_kernels.types import Value, ValueType

ZERO = -1
"""The index that stands for no feature: a zero is put there."""


class SelectFeatures(Node):
    """y[..., j] = x[..., indices[j]], or 0 where indices[j] is -1, on rows, tokens, points, sites or clouds."""

    op: Literal["select_features"]
    indices: tuple[Annotated[int, Field(ge=ZERO)], ...] = Field(min_length=1, max_length=2**20)

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """As many features as there are indices, all of which must be features of the input."""
        kind = features_last(inputs[0])
        if max(self.indices) >= kind.channels:
            raise ValueError(f"indices reach {max(self.indices)}, its input has {kind.channels} features, from 0 on")
        return replace(kind, shape=(*kind.shape[:-1], len(self.indices)), columns=())

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """No arithmetic; what is picked is read and written once."""
        return Cost(0, elementwise_cost(self.infer_type(inputs), rows).bytes)

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Pick, and put zeros where there is nothing to pick."""
        (x,) = inputs
        index = torch.tensor(self.indices, device=x.data.device)
        return Value(select(x.data, index), x.offsets, x.coordinates)


def select(x: Tensor, index: Tensor) -> Tensor:
    """Return [..., m] of x [..., n] for an index int64 [m] of -1 or more; not finite numbers leave zeros alone."""
    return x.index_select(-1, index.clamp(min=0)).masked_fill(index == ZERO, 0)
