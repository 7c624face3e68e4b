"""The complete check of a request, so that one that is queued can fail no batch."""

from collections.abc import Mapping

import torch

from lacuna_kernels.errors import InputError
from lacuna_kernels.graph import Graph, Precision
from lacuna_kernels.ops.voxelize import Voxelize
from lacuna_kernels.types import Batch, check_batch

FP16_MAX = torch.finfo(torch.float16).max


def check_request(graph: Graph, batch: Batch, precision: Precision = Precision.FP32) -> int:
    """Check a batch against a network and return how many items it holds; raises InputError with the numbers.

    Names, types, shapes, offsets, finite points, points too far away for a voxel coordinate, and values that the
    precision of the model cannot hold: points are features too, and in fp16 they would silently become infinite.
    """
    items = check_batch(batch, graph.input_value_types)
    largest = _check_fp16(batch) if precision is Precision.FP16 else {}
    for node in graph.nodes:
        if isinstance(node, Voxelize):
            cloud = node.inputs[0]
            node.check_positions(batch[cloud].data, largest.get(cloud))
    return items


def _check_fp16(batch: Batch) -> Mapping[str, float]:
    """Return the largest absolute value by input, which fp16 holds."""
    found = {}
    for name, value in batch.items():
        if value.data.is_floating_point() and value.data.numel():
            found[name] = largest = float(value.data.abs().max())
            if largest > FP16_MAX:
                raise InputError(
                    f"input {name!r} has a value of {largest:.6g}; this model runs in fp16, whose largest is "
                    f"{FP16_MAX:.0f}: take off an origin or a scale, or serve it in bf16 or fp32"
                )
    return found
