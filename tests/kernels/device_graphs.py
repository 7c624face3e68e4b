"""Edges of graphs on a device, with room to spare that is filled with nonsense, and what is to be made of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from lacuna_kernels import Batch
from lacuna_kernels.cuda.edges import EdgeBuffer, PairBuffer, pair_edges, pairs_work
from lacuna_kernels.cuda.kernel_map import KernelMap
from lacuna_kernels.ops.relational_graph_conv import numbered
from tests.kernels.device_sites import NONSENSE, SPARE, SPARE_ITEMS

Room = Callable[..., Tensor]
"""Makes nonsense int32 of a shape."""


def edges_on_device(batch: Batch, room: Room) -> EdgeBuffer:
    """The edges of a batch."""

    def put(values: Tensor, *shape: int) -> Tensor:
        whole = room(*shape)
        whole[: len(values)] = values.int()
        return whole

    def padded(offsets: Tensor) -> Tensor:
        return put(torch.cat([offsets, offsets[-1:].expand(SPARE_ITEMS)]), len(offsets) + SPARE_ITEMS)

    nodes, edges = batch["nodes"], batch["edges"]
    assert nodes.offsets is not None and edges.offsets is not None
    return EdgeBuffer(
        put(edges.data, len(edges.data) + SPARE, 3),
        put(torch.tensor([len(edges.data)]), 1),
        padded(edges.offsets),
        put(torch.tensor([len(nodes.data)]), 1),
        padded(nodes.offsets),
    )


def paired(device: object, batch: Batch, relations: int, room: Room) -> tuple[PairBuffer, KernelMap]:
    """Pairs of a batch, and the map to them."""
    edges = edges_on_device(batch, room)
    capacity, nodes = len(edges.edges), len(batch["nodes"].data) + SPARE
    pairs = PairBuffer(room(capacity), room(capacity + 1), room(1))
    kernel_map = KernelMap.made(relations, nodes, room)
    pair_edges(device, edges, relations, pairs, kernel_map, room(pairs_work(capacity, nodes)))
    return pairs, kernel_map


def expected_pairs(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(node, relation) int64 [pairs, 2]; the sources of the edges by pair, in their order; where each pair begins."""
    source, target, relation = numbered(batch["nodes"], batch["edges"])
    pairs, pair_of_edge = torch.stack([target, relation], 1).unique(dim=0, return_inverse=True)
    order = torch.sort(pair_of_edge, stable=True).indices
    counts = torch.bincount(pair_of_edge, minlength=len(pairs))
    return pairs, source[order], torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def assert_pairs(pairs: PairBuffer, kernel_map: KernelMap, batch: Batch) -> None:
    """Whole numbers, exactly; what lies past those in use was left alone."""
    expected, sources, starts = expected_pairs(batch)
    edges, n, count = len(sources), len(batch["nodes"].data), len(expected)
    assert int(pairs.count) == count
    assert torch.equal(pairs.sources[:edges].cpu().long(), sources)
    assert torch.equal(pairs.starts[: count + 1].cpu().long(), starts)
    assert bool((pairs.sources[edges:] == NONSENSE).all())
    assert bool((pairs.starts[count + 1 :] == NONSENSE).all())

    rows, order = kernel_map.rows.cpu(), kernel_map.order[0].cpu()
    relations = len(rows)
    assert order[:n].sort().values.tolist() == list(range(n))
    found = torch.full((relations, n), -1)
    found[expected[:, 1], expected[:, 0]] = torch.arange(count)
    assert torch.equal(rows[:, :n].long(), found[:, order[:n].long()])
    assert bool((rows[:, n:] == NONSENSE).all())
    assert bool((order[n:] == NONSENSE).all())
    assert torch.equal(present_bits(kernel_map, relations), any_of_groups(rows[:, :n] >= 0, len(kernel_map.present[0])))


def present_bits(kernel_map: KernelMap, relations: int) -> Tensor:
    """The words of `present`, bit by bit: bool [groups, relations]."""
    bits = kernel_map.present[0].cpu().long()[:, :, None] >> torch.arange(32) & 1
    assert not bool(bits.flatten(1)[:, relations:].any())
    return bits.flatten(1)[:, :relations].bool()


def any_of_groups(there: Tensor, groups: int) -> Tensor:
    """Whether any of 64 places has it: bool [relations, places] to [groups, relations]."""
    padded = torch.zeros(len(there), groups * 64, dtype=torch.bool)
    padded[:, : there.shape[1]] = there
    return padded.view(len(there), groups, 64).any(2).T
