"""What ks_few_rows.cu is told: how a chain of factors is dealt to a team of blocks, and where things lie in them."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil

import torch
from torch import Tensor

from lacuna_kernels.ops.kronecker_linear import KSPattern

LONGEST = 15
"""Factors of a program, at most."""
TILE_ROWS = 8
"""Rows of one tile of the tensor cores."""
ROUTES_BYTES = 128
"""What `Program.routes` takes for an item."""
_STEP, _STRIP = 16, 16  # of k and j: a fragment of the values
_ATOM_BYTES, _FRAGMENT_BYTES, _BARRIER_BYTES, _FACTOR_BYTES = 16, 512, 8, 128
_BATCH = 4  # fragments of one slot of a ring
_RANK_BIT = 20
_FIRST_OPTION = 0x100


@dataclass(frozen=True, slots=True)
class Deal:
    """How the items of a factor, 16 columns j of a unit (i, l) each, are dealt to the blocks of a team.

    A block has `units` whole units, or else `spread` blocks share each unit evenly.
    """

    pattern: KSPattern
    units: int
    spread: int

    @classmethod
    def of(cls, pattern: KSPattern, team: int) -> "Deal":
        """Deal as evenly as whole units, or even parts of one, allow."""
        units, strips = pattern.a * pattern.d, ceil(pattern.b / _STRIP)
        if team < 2 * units or strips == 1:
            return cls(pattern, ceil(units / team), 1)
        share = next(s for s in range(ceil(strips / (team // units)), strips + 1) if strips % s == 0)
        return cls(pattern, 1, strips // share)

    @property
    def strips(self) -> int:
        """Items of a unit."""
        return ceil(self.pattern.b / _STRIP)

    @property
    def items(self) -> int:
        """Items in all."""
        return self.pattern.a * self.pattern.d * self.strips

    @property
    def share(self) -> int:
        """Items of a block, at most."""
        return self.units * self.strips // self.spread

    @property
    def blocks(self) -> int:
        """Blocks that have any."""
        return ceil(self.items / self.share)

    @property
    def k_tiles(self) -> int:
        """Steps over k."""
        return ceil(self.pattern.c / _STEP)

    @property
    def pitch(self) -> int:
        """Bytes of the features that a block's items read, for one tile of rows; what is read past the end included."""
        return (self.units * self.k_tiles * _STEP + _STEP) * _ATOM_BYTES

    def values_bytes(self) -> int:
        """Bytes of the packed values."""
        return self.items * self.k_tiles * _FRAGMENT_BYTES

    def places(self, column: Tensor) -> Tensor:
        """Where the blocks keep these features of x, int: the first such block's rank, and below it a place."""
        c, d = self.pattern.c, self.pattern.d
        rest = column % (c * d)
        unit = column // (c * d) * d + rest % d
        block = unit // self.units
        atom = (unit - block * self.units) * self.k_tiles * _STEP + rest // d
        return _route(block * self.spread, atom)


def _route(rank: Tensor, atom: Tensor) -> Tensor:
    """Atoms that lie 8 apart change places, so that they are in different banks."""
    return rank << _RANK_BIT | (atom ^ (atom >> 3 & 7)) * _ATOM_BYTES


@dataclass(frozen=True, slots=True)
class Link:
    """What a launch tells of one factor: addresses, 0 for none."""

    values: int
    routes: int
    bias: int = 0
    residual: int = 0
    y: int = 0
    activation: int = 0
    negative_slope: float = 0.0

    @property
    def options(self) -> int:
        """The activation, and bits for what there is."""
        there = (self.bias, self.residual, self.y)
        return self.activation | sum(_FIRST_OPTION << index for index, address in enumerate(there) if address)


@dataclass(frozen=True)
class Program:
    """A chain for a team of blocks that carry `tiles` tiles of rows.

    warps   of a block
    stages  slots of the ring of each warp that has items
    gather  whether y is gathered, so that every block writes whole runs of it; else who computes it writes it
    """

    patterns: tuple[KSPattern, ...]
    team: int
    tiles: int
    warps: int
    stages: int
    gather: bool

    @cached_property
    def deals(self) -> tuple[Deal, ...]:
        """How each factor is dealt."""
        return tuple(Deal.of(pattern, self.team) for pattern in self.patterns)

    @property
    def run(self) -> int:
        """Features of y that a block gathers."""
        return ceil(ceil(self.patterns[-1].width_out / self.team) / 8) * 8

    @cached_property
    def places(self) -> tuple[int, int, tuple[int, ...], int]:
        """Bytes from the start of shared memory: sums on their way, atoms; from there each buffer; barriers."""
        active = min(self.warps, max(deal.share for deal in self.deals))
        staging = active * self.stages * _BATCH * _FRAGMENT_BYTES
        atoms = staging + self.warps * self.tiles * _STRIP * _ATOM_BYTES
        sizes = [deal.pitch * self.tiles for deal in self.deals]
        sizes += [self.run * _ATOM_BYTES * self.tiles] if self.gather else []
        buffers = tuple(sum(sizes[:index]) for index in range(len(sizes)))
        return staging, atoms, buffers, atoms + sum(sizes)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self.places[-1] + (LONGEST + 1) * _BARRIER_BYTES

    def routes(self, device: torch.device) -> list[Tensor]:
        """For each item of each factor, int32 [items, 16, 2]: the column of y, or -1, and where the next keeps it."""
        found = []
        for deal, following in pairwise((*self.deals, None)):
            assert deal is not None
            at = torch.arange(deal.items * _STRIP, device=device)
            unit, j = at // (deal.strips * _STRIP), at % (deal.strips * _STRIP)
            _, b, _, d = deal.pattern.values
            column = (unit // d * b + j) * d + unit % d
            where = following.places(column) if following else _route(column // self.run, column % self.run)
            pair = torch.stack([column, where], -1)
            found.append(torch.where((j < b)[:, None], pair, torch.tensor([-1, 0], device=device)).int())
        return found

    def encode(self, links: Sequence[Link]) -> bytes:
        """`struct Program` of the source."""
        staging, atoms, buffers, barriers = self.places
        padded = any(pattern.c % _STEP for pattern in self.patterns)
        head = struct.pack("8i", len(links), 0, self.gather, self.warps, staging, atoms, barriers, padded)
        factors = [self._factor(d, link, at) for d, link, at in zip(self.deals, links, buffers, strict=False)]
        if self.gather:
            width, run = self.patterns[-1].width_out, self.run
            places = (0, 0, 1, buffers[-1], run, 1, run * _ATOM_BYTES, 0, width, width, 0)
            factors.append(struct.pack("5Q15if", *[0] * 9, *places, 0.0) + bytes(24))
        return head + b"".join(factors).ljust((LONGEST + 1) * _FACTOR_BYTES, b"\0")

    def _factor(self, deal: Deal, link: Link, buffer: int) -> bytes:
        _, _, c, d = deal.pattern.values
        units = deal.pattern.a * d
        dealt = (deal.items, deal.share, ceil(deal.share / self.warps), deal.k_tiles, units, deal.units, deal.spread)
        numbers = (*dealt, buffer, c, d, deal.pitch, 0, deal.pattern.width_in, deal.pattern.width_out, link.options)
        addresses = (link.values, link.routes, link.bias, link.residual, link.y)
        divisors = (_divisor(by) for by in (d, deal.strips, c if d == 1 else deal.units))
        return struct.pack("5Q15if", *addresses, *numbers, link.negative_slope) + b"".join(divisors)


def _divisor(by: int) -> bytes:
    """`struct Divisor`: x / by is the upper half of x * magic, for x * by < 2^32."""
    return struct.pack("2I", by, 0 if by == 1 else ceil(2**32 / by))


def pack(values: Tensor) -> Tensor:
    """Values [a, b, c, d] as fragments, uint8: by item and step over k, 16 bytes for each lane of mma.m16n8k16."""
    a, b, c, d = values.shape
    strips, steps = ceil(b / _STRIP), ceil(c / _STEP)
    whole = values.new_zeros(a, d, strips * _STRIP, steps * _STEP)
    whole[:, :, :b, :c] = values.permute(0, 3, 1, 2)
    parts = whole.view(a * d, strips, 2, 8, steps, 2, 4, 2)  # unit, strip, half of j, j, step, half of k, k / 2, k % 2
    return parts.permute(0, 1, 4, 3, 6, 5, 2, 7).contiguous().view(torch.uint8).flatten()
