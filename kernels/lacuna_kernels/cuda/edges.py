"""Launches of src/edges.cu and src/edge_sums.cu: edges by what they lead to, and sums over those of each pair."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kernel_map import WORD_BITS, KernelMap
from lacuna_kernels.cuda.offset_slots import key_bits
from lacuna_kernels.cuda.scan import blocks, exclusive_scan, scan_work
from lacuna_kernels.cuda.sort import sort, sort_work

THREADS = 256
VECTOR_BYTES = 16

RELATIONS, TARGETS, PLACE, NUMBER, NODES, MAP = (
    Variant("edges.cu", name)
    for name in ("relation_keys", "target_keys", "place_edges", "number_pairs", "node_keys", "map_pairs")
)


def _sums(dtype: torch.dtype, vector: int) -> Variant:
    constants = (("ELEMENT", ELEMENTS[dtype]), ("VECTOR", vector))
    return Variant("edge_sums.cu", "edge_sums", constants, dynamic_shared_bytes=THREADS * vector * 4)


VARIANTS = (
    *(RELATIONS, TARGETS, PLACE, NUMBER, NODES, MAP),
    *(_sums(dtype, vector) for dtype in ELEMENTS for vector in (VECTOR_BYTES // dtype.itemsize, 1)),
)


@dataclass(frozen=True, slots=True)
class EdgeBuffer:
    """The edges of a batch of graphs, with room for some; rows at or past the count mean nothing.

    edges         int32 [capacity, 3] as (source, target, relation), nodes by their number within their item
    count         int32 [1], edges in use
    offsets       int32 [items + 1], where the edges of each item begin
    nodes         int32 [1], nodes in use
    node_offsets  int32 [items + 1], where the nodes of each item begin
    """

    edges: Tensor
    count: Tensor
    offsets: Tensor
    nodes: Tensor
    node_offsets: Tensor


@dataclass(frozen=True, slots=True)
class PairBuffer:
    """Edges by what they lead to: a pair is a node and a relation by which edges lead to it.

    sources  int32 [edges], the rows of the nodes that they come from, pair by pair, in their order
    starts   int32 [edges + 1], where the edges of each pair begin
    count    int32 [1], pairs; never more than edges, so that there is room for all
    """

    sources: Tensor
    starts: Tensor
    count: Tensor


def pairs_work(edges: int, nodes: int) -> int:
    """Numbers of int32 that `pair_edges` needs to work with."""
    return sum(_parts(edges, nodes))


def _parts(edges: int, nodes: int) -> list[int]:
    sorting = sort_work(max(edges, nodes))
    return [sorting, sorting, edges, edges, edges, edges, nodes + 1, scan_work(edges), 1]


def pair_edges(
    device: Device, edges: EdgeBuffer, relations: int, pairs: PairBuffer, result: KernelMap, work: Tensor
) -> None:
    """Launch the sorting of edges by target and relation, and the map by which nodes read pairs.

    result  rows [relations, nodes]: the pair of each relation and place; places in an order of their own
    work    int32 [pairs_work(edges, nodes)]
    """
    capacity, nodes = len(edges.edges), result.rows.shape[1]
    sorting, more, keys, by_place, is_first, rank, node_starts, sums, flag = torch.split(work, _parts(capacity, nodes))
    launch = (blocks(capacity, THREADS), 1, 1), (THREADS, 1, 1)
    lists = (edges.edges, edges.count, edges.offsets, len(edges.offsets) - 1, edges.node_offsets)

    by_relation = None
    if relations > 1:
        device.kernel(RELATIONS)(*launch, edges.edges, edges.count, keys)
        _, by_relation = sort(device, keys, edges.count, (relations - 1).bit_length(), sorting[: sort_work(capacity)])
    device.kernel(TARGETS)(*launch, *lists, by_relation, keys)
    bits = max(1, (nodes - 1).bit_length())
    targets, by_target = sort(device, keys, edges.count, bits, more[: sort_work(capacity)])
    device.kernel(PLACE)(*launch, *lists, by_relation, by_target, targets, pairs.sources, by_place, is_first)

    exclusive_scan(device, is_first, rank, edges.count, sums, (pairs.count, capacity, flag))  # which never is too many
    beyond, pair_relations = (blocks(capacity + 1, THREADS), 1, 1), keys  # which nobody needs any more
    device.kernel(NUMBER)(
        beyond, launch[1], edges.count, is_first, rank, by_place, pairs.count, pairs.starts, pair_relations
    )

    by_bits = key_bits(relations)
    device.kernel(NODES)(
        *((blocks(nodes + 1, THREADS), 1, 1), launch[1]),
        *(edges.count, targets, rank, pairs.count, pair_relations, edges.nodes, relations, by_bits),
        *(node_starts, result.keys),
    )
    _, by_key = sort(device, result.keys, edges.nodes, by_bits, sorting[: sort_work(nodes)])
    result.present.zero_()
    tiles, words = blocks(nodes, THREADS), blocks(relations, WORD_BITS)
    device.kernel(MAP)(
        *((tiles * words, 1, 1), launch[1]),
        *(edges.nodes, by_key, node_starts, pair_relations, relations, words, tiles),
        *(result.order, result.rows, nodes, result.present),
    )


def edge_sums(device: Device, x: Tensor, pairs: PairBuffer, y: Tensor, *, mean: bool) -> None:
    """Launch y[pair] = sum, or mean, of x[source] over the edges of the pair, in their order, in fp32.

    x  [nodes, channels]; may be some columns of a wider matrix
    y  [capacity, channels], of the type of x
    """
    capacity, channels = y.shape
    vector = _vector(x, y)
    across = min(32, 1 << (channels // vector - 1).bit_length())
    device.kernel(_sums(x.dtype, vector))(
        (blocks(capacity, THREADS // across), 1, 1),
        (THREADS, 1, 1),
        *(x, x.stride(0), pairs.sources, pairs.starts, pairs.count, int(mean), y, y.stride(0), channels, across),
    )


def _vector(*tensors: Tensor) -> int:
    """Channels that can be read and written at a time."""
    vector = VECTOR_BYTES // tensors[0].dtype.itemsize
    numbers = [number for x in tensors for number in (x.shape[1], x.stride(0))]
    fits = not any(number % vector for number in numbers) and not any(x.data_ptr() % VECTOR_BYTES for x in tensors)
    return vector if fits else 1
