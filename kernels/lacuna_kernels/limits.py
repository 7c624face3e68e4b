"""The complete check of a request, so that one that is queued can fail no batch."""

from lacuna_kernels.graph import Graph
from lacuna_kernels.ops.voxelize import Voxelize
from lacuna_kernels.types import Batch, check_batch


def check_request(graph: Graph, batch: Batch) -> int:
    """Check a batch against a network and return how many items it holds; raises InputError with the numbers.

    Names, types, shapes, offsets, finite points, and points too far away for a voxel coordinate.
    """
    items = check_batch(batch, graph.input_value_types)
    for node in graph.nodes:
        if isinstance(node, Voxelize):
            node.check_positions(batch[node.inputs[0]].data)
    return items
