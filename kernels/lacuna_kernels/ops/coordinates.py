"""Sets of integer coordinates: first occurrences, lookups, and the kernel maps made of them.

Coordinates are int32 [n, 4] as (item, x, y, z), any values within +-2^30; the order of a set is the order of first
occurrence, so that a cloud has the same sites in the same order alone and in any batch.
"""

from itertools import product
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lacuna_kernels.types import Geometry, Triple

COORDINATE_LIMIT = 2**30
Cells = Annotated[int, Field(ge=1, lt=COORDINATE_LIMIT)]
"""How many cells a bounded grid has along one axis."""

_KEY_LIMIT = 2**62


def kernel_offsets(kernel_size: Triple) -> list[Triple]:
    """Return (kx, ky, kz) of every weight slice, in the order of the weight's first axis: z fastest."""
    return [(x, y, z) for x, y, z in product(*map(range, kernel_size))]


class SiteIndex:
    """Finds rows of a fixed int32 [n, 4] set; exact for any values: keys are ranked anew before they overflow."""

    def __init__(self, coordinates: Tensor) -> None:
        self.low = coordinates.amin(0).long() if len(coordinates) else coordinates.new_zeros(4).long()
        high = coordinates.amax(0).long() if len(coordinates) else self.low
        self.extent = (high - self.low + 1).tolist()
        self.ranks: list[Tensor | None] = []
        key, span = torch.zeros(len(coordinates), dtype=torch.int64, device=coordinates.device), 1
        for axis in range(4):
            ranks = None
            if span * self.extent[axis] > _KEY_LIMIT:
                ranks, key = torch.unique(key, return_inverse=True)
                span = len(ranks)
            self.ranks.append(ranks)
            key = key * self.extent[axis] + (coordinates[:, axis].long() - self.low[axis])
            span *= self.extent[axis]
        self.key = key
        self.sorted, self.order = torch.sort(key, stable=True)

    def find(self, queries: Tensor) -> Tensor:
        """Return for int64 or int32 [m, 4] queries the first row that holds each, -1 where none does: int64 [m]."""
        if not len(self.sorted):
            return torch.full((len(queries),), -1, dtype=torch.int64, device=queries.device)
        shifted = queries.long() - self.low
        found = ((shifted >= 0) & (shifted < torch.tensor(self.extent, device=queries.device))).all(1)
        key = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
        for axis, ranks in enumerate(self.ranks):
            if ranks is not None:
                place = torch.searchsorted(ranks, key).clamp_(max=len(ranks) - 1)
                found &= ranks[place] == key
                key = place
            key = key * self.extent[axis] + torch.where(found, shifted[:, axis], 0)
        place = torch.searchsorted(self.sorted, key).clamp_(max=len(self.sorted) - 1)
        found &= self.sorted[place] == key
        return torch.where(found, self.order[place], -1)


def unique_first(coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Drop repeated rows: (rows int64 [u] of the first occurrences, in order; inverse int64 [n] into them)."""
    index = SiteIndex(coordinates)
    first = index.find(coordinates)
    rows = torch.unique(first)
    return rows, torch.searchsorted(rows, first)


def submanifold_geometry(kernel_size: Triple, dilation: Triple) -> Geometry:
    """Geometry of a convolution whose outputs are its inputs: stride 1, padding dilation*(K - 1)/2."""
    px, py, pz = (d * (k - 1) // 2 for d, k in zip(dilation, kernel_size, strict=True))
    return Geometry(kernel_size, (1, 1, 1), (px, py, pz), dilation)


def kernel_map(inputs: Tensor, outputs: Tensor, g: Geometry) -> Tensor:
    """Return for offset k and output site the input that it reads, or -1: int64 [k, m].

    That is the one at output*stride - padding + k*dilation, or in a generative convolution the one that leads to the
    output in this way.
    """
    index, by = SiteIndex(inputs), _row(1, g.stride, outputs)
    steps = [_row(0, _scaled(offset, g.dilation), outputs) for offset in kernel_offsets(g.kernel_size)]
    if not g.generative:
        first = outputs.long() * by - _row(0, g.padding, outputs)
        return torch.stack([index.find(first + step) for step in steps])
    moved = [outputs.long() + _row(0, g.padding, outputs) - step for step in steps]
    floors = [torch.div(site, by, rounding_mode="floor") for site in moved]
    found = [torch.where((f * by == m).all(1), index.find(f), -1) for f, m in zip(floors, moved, strict=True)]
    return torch.stack(found)


def contributing_sites(inputs: Tensor, g: Geometry, spatial_shape: Triple | None) -> Tensor:
    """All sites that at least one input feeds, in the order of (input, offset): int32 [m, 4].

    spatial_shape bounds the outputs: 0 <= site < spatial_shape by axis; None means any.
    """
    steps = torch.tensor([_scaled(o, g.dilation) for o in kernel_offsets(g.kernel_size)], device=inputs.device)
    moved = inputs[:, None, 1:].long() + torch.tensor(g.padding, device=inputs.device) - steps
    by = torch.tensor(g.stride, device=inputs.device)
    site = torch.div(moved, by, rounding_mode="floor")
    fits = (site * by == moved).all(2)
    if spatial_shape is not None:
        fits &= ((site >= 0) & (site < torch.tensor(spatial_shape, device=inputs.device))).all(2)
    item = inputs[:, None, :1].expand(-1, len(steps), 1)
    candidates = torch.cat([item.long(), site], 2)[fits].int()
    return candidates[unique_first(candidates)[0]]


def floor_sites(inputs: Tensor, stride: Triple) -> Tensor:
    """The sites floor(input / stride), in the order of their first input, as MinkowskiEngine has them: int32 [m, 4]."""
    site = torch.div(inputs, _row(1, stride, inputs).int(), rounding_mode="floor")
    return site[unique_first(site)[0]]


def generated_sites(inputs: Tensor, g: Geometry, spatial_shape: Triple | None) -> Tensor:
    """All sites that inputs lead to in a generative convolution, in the order of (input, offset): int32 [m, 4]."""
    offsets = [[0, *_scaled(offset, g.dilation)] for offset in kernel_offsets(g.kernel_size)]
    first = inputs.long() * _row(1, g.stride, inputs) - _row(0, g.padding, inputs)
    candidates = (first[:, None] + torch.tensor(offsets, device=inputs.device)).flatten(0, 1)
    if spatial_shape is not None:
        site = candidates[:, 1:]
        candidates = candidates[((site >= 0) & (site < torch.tensor(spatial_shape, device=inputs.device))).all(1)]
    made = candidates.int()
    return made[unique_first(made)[0]]


def inverse_map(forward: Tensor, fine_sites: int) -> Tensor:
    """Turn a map [k, coarse] round: for offset k and fine site the coarse site it fed, or -1; int64 [k, fine]."""
    result = torch.full((len(forward), fine_sites), -1, dtype=torch.int64, device=forward.device)
    offset, coarse = (forward >= 0).nonzero(as_tuple=True)
    result[offset, forward[offset, coarse]] = coarse
    return result


def count_offsets(coordinates: Tensor, items: int) -> Tensor:
    """Offsets int64 [items + 1] of sites grouped by item."""
    counts = torch.bincount(coordinates[:, 0].long(), minlength=items)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _scaled(offset: Triple, dilation: Triple) -> Triple:
    return (offset[0] * dilation[0], offset[1] * dilation[1], offset[2] * dilation[2])


def _row(item: int, xyz: Triple, like: Tensor) -> Tensor:
    return torch.tensor([item, *xyz], dtype=torch.int64, device=like.device)
