"""Tiles of src/sparse_conv_wgmma.cu and sparse_conv_resident.cu, for 16 bits on Hopper; see sparse_conv_tiles.py."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.scan import blocks
from lacuna_kernels.cuda.sparse_conv_tiles import PIECE, padded

_BARRIERS_BYTES = 1024
_SLOTS, _BESIDE_ROWS = 16, 32
"""Offsets whose rows are in shared memory, and words beside those of each."""
_PANEL = 32
"""Channels that lie side by side in a weight."""
_MOST_RESIDENT, _BESIDE_WEIGHTS, _SHARED_BYTES = 32, 2048, 232_448
"""Offsets of a word, bytes of shared memory before weights that stay, and all that a block can have."""


@dataclass(frozen=True, slots=True)
class WgmmaTile:
    """In 16 bits on Hopper's tensor cores, of aligned inputs.

    stages    steps under way
    bringers  threads that bring a step: two warps that gather, the others, one or two, go ahead of them
    blocks    of a multiprocessor, at least
    halves    of the tile, of each of which a warpgroup multiplies 64 rows
    """

    m: int
    n: int
    stages: int
    bringers: int
    blocks: int
    halves: int = 1

    @property
    def early(self) -> bool:
        """Beside the end of the kernel before."""
        return True

    def grid(self, most: int, likely: int, co: int, parts: int, multiprocessors: int) -> int:
        """So many that each has a tile if no more are there than are likely; else some have several."""
        return blocks(min(most * parts, rows_in_tiles(likely, parts > 1)), self.m) * blocks(co, self.n)

    @property
    def k(self) -> int:
        """Of a panel: two of them are multiplied at a time, whichever offsets they are of."""
        return _PANEL

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 2 * self.m // self.halves + self.bringers

    def variant(self, dtype: torch.dtype, aligned: bool, split: bool = False) -> Variant:
        """The kernel."""
        if not aligned:
            raise ValueError(f"{self} takes 16 bytes of the input at a time, and so channels and pitches of 8")
        constants: tuple[tuple[str, int | str], ...] = (
            ("ELEMENT", ELEMENTS[dtype]),
            ("TILE_M", self.m),
            ("TILE_N", self.n),
            ("STAGES", self.stages),
            ("BRINGERS", self.bringers),
            ("BLOCKS", self.blocks),
            ("HALVES", self.halves),
            ("SPLIT", int(split)),
        )
        stages = self.stages * (self.m + self.n) * 2 * self.k * 2
        shared_bytes = _BARRIERS_BYTES + stages + _SLOTS * (self.m + _BESIDE_ROWS) * 4
        early = 1  # the cluster of a kernel that may begin before the one before it has ended
        return Variant("sparse_conv_wgmma.cu", "sparse_conv_wgmma", constants, ("sm_90a",), shared_bytes, early)

    @property
    def packing(self) -> str:
        """In panels, whose rows are in the order of a lane's."""
        return f"neighbours in panels of {self.n}"

    def pack(self, weight: Tensor) -> Tensor:
        """[volume * panels of k channels, tiles of n, n, k]; piece p of row n lies at p xor n / 2 % 4.

        Columns are in an order by which a lane's sums are neighbours.
        """
        return _panels(_neighbours(padded(weight, self.k, self.n), 8), self.n)


@dataclass(frozen=True, slots=True)
class ResidentTile:
    """In 16 bits on Hopper's tensor cores: all of up to k input channels, while all weights stay in shared memory.

    It reads `piece` channels at a time: zeros follow those of an input whose number is no multiple of that. It adds up
    32 channels by 16 of which each four are side by side.

    stages      offsets under way
    warpgroups  each makes 64 rows at a time
    """

    k: int
    n: int
    stages: int
    warpgroups: int

    @property
    def m(self) -> int:
        """Output rows of a warpgroup, which goes through their offsets alone."""
        return 64

    @property
    def early(self) -> bool:
        """Beside the end of the kernel before."""
        return True

    @property
    def piece(self) -> int:
        """Channels that are read at a time, at multiples of so many."""
        return piece_of(self.k)

    @property
    def offsets(self) -> int:
        """How many there may be."""
        return min(_MOST_RESIDENT, (_SHARED_BYTES - _BESIDE_WEIGHTS) // self._offset_bytes)

    @property
    def _offset_bytes(self) -> int:
        return blocks(self.k, _PANEL) * _PANEL * self.n * 2

    def grid(self, most: int, likely: int, co: int, parts: int, multiprocessors: int) -> int:
        """One a multiprocessor, if so many have something to do."""
        return min(multiprocessors, blocks(min(most, likely), self.m))

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 128 * self.warpgroups

    def variant(self, dtype: torch.dtype, aligned: bool, split: bool = False) -> Variant:
        """The kernel."""
        if not aligned or split:
            raise ValueError(f"{self} takes pieces of {self.piece} channels, and offsets in one part")
        constants: tuple[tuple[str, int | str], ...] = (
            ("ELEMENT", ELEMENTS[dtype]),
            ("CHANNELS", self.k),
            ("TILE_N", self.n),
            ("STAGES", self.stages),
            ("WARPGROUPS", self.warpgroups),
        )
        shared_bytes = _BESIDE_WEIGHTS + self.offsets * self._offset_bytes
        early = 1  # see WgmmaTile
        return Variant("sparse_conv_resident.cu", "sparse_conv_resident", constants, ("sm_90a",), shared_bytes, early)

    @property
    def packing(self) -> str:
        """In panels whose rows and columns are in the order of a lane's."""
        return f"resident panels of {self.n}, {min(32, self.k)} channels"

    def pack(self, weight: Tensor) -> Tensor:
        """As for WgmmaTile, but a lane's neighbours are side by side in x and y: see src/sparse_conv_resident.cu."""
        if len(weight) > self.offsets or not 0 <= self.k - weight.shape[1] < 16 or weight.shape[2] > self.n:
            most = f"{self.offsets} offsets, {self.k - 15} to {self.k} channels to at most {self.n}"
            raise ValueError(f"{self} takes {most}, got a weight of {tuple(weight.shape)}")
        whole, wide = padded(weight, _PANEL, self.n), min(8, self.n // 4)
        volume, ci, co = whole.shape
        together = min(self.k, 32)  # lane % 4, product, half, neighbour
        pairs = whole.view(volume, ci // together, 4, together // 16, 2, 2, co).permute(0, 1, 3, 4, 2, 5, 6)
        return _panels(_neighbours(pairs.reshape(volume, ci, co), wide), self.n)


def rows_in_tiles(rows: int, split: bool) -> int:
    """Rows of all tiles of a layer: of offsets in parts half of them have some of a part before the last, or so."""
    return rows * 3 // 2 if split else rows


def piece_of(channels: int) -> int:
    """How many of an input's channels a ResidentTile reads at a time."""
    return PIECE // 2 if channels <= 16 else PIECE


def _neighbours(whole: Tensor, wide: int) -> Tensor:
    """Columns so that what a lane has, two of every 8, are `wide` neighbours."""
    volume, ci, co = whole.shape
    in_turns = whole.reshape(volume, ci, co // (4 * wide), 4, wide // 2, 2)
    return in_turns.transpose(3, 4).reshape(volume, ci, co)


def _panels(whole: Tensor, n: int) -> Tensor:
    """[volume * panels of 32 channels, tiles of n, n, 32]; piece p of row n lies at p xor n / 2 % 4."""
    volume, ci, co = whole.shape
    tiles = whole.view(volume * ci // _PANEL, _PANEL, co // n, n).permute(0, 2, 3, 1)
    pieces = tiles.reshape(*tiles.shape[:2], n // 8, 8, _PANEL // PIECE, PIECE)
    row, piece = torch.arange(8)[:, None], torch.arange(_PANEL // PIECE)
    return pieces[:, :, :, row, row // 2 ^ piece].contiguous()
