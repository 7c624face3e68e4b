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
    index = SiteIndex(inputs)
    if g.generative:
        return torch.stack([torch.where(whole, index.find(site), -1) for site, whole in _leading(outputs, g)])
    return torch.stack([index.find(site) for site in _reached(outputs, g)])


def _reached(coarse: Tensor, g: Geometry) -> list[Tensor]:
    """The site at coarse*stride - padding + k*dilation, for each offset k: int64 [n, 4]."""
    first = coarse.long() * _row(1, g.stride, coarse) - _row(0, g.padding, coarse)
    return [first + _row(0, _scaled(offset, g.dilation), coarse) for offset in kernel_offsets(g.kernel_size)]


def _leading(fine: Tensor, g: Geometry) -> list[tuple[Tensor, Tensor]]:
    """For each offset k the site, int64 [n, 4], that reaches each of these through k, and whether there is one."""
    by, first = _row(1, g.stride, fine), fine.long() + _row(0, g.padding, fine)
    moved = [first - _row(0, _scaled(offset, g.dilation), fine) for offset in kernel_offsets(g.kernel_size)]
    floors = [torch.div(site, by, rounding_mode="floor") for site in moved]
    return [(floor, (floor * by == site).all(1)) for floor, site in zip(floors, moved, strict=True)]


def contributing_sites(inputs: Tensor, g: Geometry, spatial_shape: Triple | None) -> Tensor:
    """All sites that at least one input feeds, in the order of (input, offset): int32 [m, 4].

    spatial_shape bounds the outputs: 0 <= site < spatial_shape by axis; None means any.
    """
    sites, whole = zip(*_leading(inputs, g), strict=True)
    return _first_of_each(torch.stack(sites, 1)[torch.stack(whole, 1)], spatial_shape)


def floor_sites(inputs: Tensor, stride: Triple) -> Tensor:
    """The sites floor(input / stride), in the order of their first input, as MinkowskiEngine has them: int32 [m, 4]."""
    site = torch.div(inputs, _row(1, stride, inputs).int(), rounding_mode="floor")
    return site[unique_first(site)[0]]


def generated_sites(inputs: Tensor, g: Geometry, spatial_shape: Triple | None) -> Tensor:
    """All sites that inputs lead to in a generative convolution, in the order of (input, offset): int32 [m, 4]."""
    return _first_of_each(torch.stack(_reached(inputs, g), 1).flatten(0, 1), spatial_shape)


def _first_of_each(candidates: Tensor, spatial_shape: Triple | None) -> Tensor:
    """The different sites among int64 [n, 4], in the order of first occurrence, inside a shape: int32 [m, 4]."""
    if spatial_shape is not None:
        site, bounds = candidates[:, 1:], torch.tensor(spatial_shape, device=candidates.device)
        candidates = candidates[((site >= 0) & (site < bounds)).all(1)]
    sites = candidates.int()
    return sites[unique_first(sites)[0]]


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
