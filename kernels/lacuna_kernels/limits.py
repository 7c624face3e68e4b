"""The complete check of a request, so that one that is queued can fail no batch."""

from math import isfinite

import torch
from torch import Tensor

from lacuna_kernels.errors import InputError
from lacuna_kernels.graph import Graph, Precision
from lacuna_kernels.ops.voxelize import Voxelize
from lacuna_kernels.types import Batch, ValueType, check_batch

FP16_MAX = torch.finfo(torch.float16).max


def check_request(graph: Graph, batch: Batch, precision: Precision = Precision.FP32) -> int:
    """Check a batch against a network and return how many items it holds; raises InputError with the numbers.

    Names, types, shapes, offsets, finite points, points too far away for a voxel coordinate, and values that the
    precision of the model cannot hold: points are features too, and in fp16 they would silently become infinite.
    """
    types = graph.input_value_types
    items = check_batch(batch, types)
    largest = {
        name: _largest(name, batch[name].data, kind, precision)
        for name, kind in types.items()
        if kind.dtype.is_float and (kind.axis.ragged or precision is Precision.FP16)
    }
    for node in graph.by_op.get("voxelize", ()):
        assert isinstance(node, Voxelize)
        cloud = node.inputs[0]
        node.check_positions(batch[cloud].data, largest[cloud])
    return items


def _largest(name: str, data: Tensor, kind: ValueType, precision: Precision) -> float:
    """The largest absolute value of an input, found in one pass and within bounds; NaN if one of rows is."""
    low, high = map(float, torch.aminmax(data)) if data.numel() else (0.0, 0.0)
    largest = max(-low, high)
    if kind.axis.ragged and not isfinite(largest):  # a voxel of NaN has no place
        bad = (~torch.isfinite(data)).any(dim=1).nonzero()[:, 0]
        what = "point" if kind.columns else "row"
        raise InputError(
            f"input {name!r} has {len(bad)} {what}s that are not finite, the first is {what} {int(bad[0])}"
        )
    if precision is Precision.FP16 and largest > FP16_MAX:
        raise InputError(
            f"input {name!r} has a value of {largest:.6g}; this model runs in fp16, whose largest is "
            f"{FP16_MAX:.0f}: take off an origin or a scale, or serve it in bf16 or fp32"
        )
    return largest
