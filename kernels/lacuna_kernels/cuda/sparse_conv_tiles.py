"""Tiles of src/sparse_conv_*.cu: what a block makes at a time, and how weights lie for it.

All of a precision add up in one order, and give the same bits, but for a ResidentTile, with which no other competes.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.precision import round_to_tf32
from lacuna_kernels.cuda.scan import blocks

PIECE = 8
"""Elements of 16 bytes, in 16-bit types."""
_BARRIERS_BYTES = 1024
_LOOKED_UP = 24
"""Offsets whose rows are in shared memory."""
_PANEL = 32
"""Channels that lie side by side in a weight for Hopper."""
_MOST_RESIDENT, _BESIDE_WEIGHTS, _SHARED_BYTES = 32, 2048, 232_448
"""Offsets of a word, bytes of shared memory before the weights, and all that a block can have."""
_PAD = 8
"""Elements between the rows that a warp writes, in shared memory."""


class Tile(Protocol):
    """m rows x n channels of the output, from k channels of the input at a time."""

    @property
    def m(self) -> int:
        """Output rows."""
        ...

    @property
    def n(self) -> int:
        """Output channels."""
        ...

    @property
    def k(self) -> int:
        """Input channels at a time."""
        ...

    @property
    def early(self) -> bool:
        """Whether a launch may begin before the kernel before it has ended."""
        ...

    def grid(self, most: int, likely: int, co: int, parts: int, multiprocessors: int) -> int:
        """Blocks of a launch for at most so many rows of co channels, of which so many rows are likely to be there.

        parts            of the offsets, each with tiles of its own
        multiprocessors  that there are
        """
        ...

    @property
    def threads(self) -> int:
        """Threads of a block."""
        ...

    def variant(self, dtype: torch.dtype, aligned: bool, split: bool = False) -> Variant:
        """The kernel.

        aligned  whether 16 bytes of the input can be copied at a time, which it may need; for a ResidentTile, whether
                 pieces can be read
        split    whether the offsets are in several parts, see kernel_map.py
        """
        ...

    @property
    def packing(self) -> str:
        """What the order of a weight follows from."""
        ...

    def pack(self, weight: Tensor) -> Tensor:
        """The weight [volume, channels, out_channels], in the order that the kernel reads it; another can follow it."""
        ...


@dataclass(frozen=True, slots=True)
class _OfPatches:
    """Of which a block reads k x n patches of the weight as it lies."""

    m: int
    n: int
    k: int

    @property
    def early(self) -> bool:
        """After the kernel before."""
        return False

    def grid(self, most: int, likely: int, co: int, parts: int, multiprocessors: int) -> int:
        """One a tile."""
        return parts * blocks(most, self.m) * blocks(co, self.n)

    @property
    def packing(self) -> str:
        """Padded."""
        return f"{self.k}x{self.n}"

    def pack(self, weight: Tensor) -> Tensor:
        """[volume * padded channels, padded out_channels], zeros in the padding."""
        return _padded(weight, self.k, self.n).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class MmaTile(_OfPatches):
    """In 16 bits on the tensor cores of any GPU since sm_80; how a block's warps lie over m and n; steps under way."""

    warps: tuple[int, int]
    stages: int = 3

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warps[0] * self.warps[1] * 32

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        stage = 2 * (self.m * (self.k + PIECE) + self.k * (self.n + PIECE))
        rows = 2 * 16 * self.warps[0] * (self.n + _PAD * self.warps[1])
        return max(self.stages * stage, rows)

    def variant(self, dtype: torch.dtype, aligned: bool, split: bool = False) -> Variant:
        """The kernel."""
        constants: tuple[tuple[str, int | str], ...] = (
            ("TILE_M", self.m),
            ("TILE_N", self.n),
            ("TILE_K", self.k),
            ("ELEMENT", ELEMENTS[dtype]),
            ("WARPS_M", self.warps[0]),
            ("WARPS_N", self.warps[1]),
            ("STAGES", self.stages),
            ("ALIGNED", int(aligned)),
        )
        return Variant("sparse_conv_mma.cu", "sparse_conv_mma", constants, dynamic_shared_bytes=self.shared_bytes)


@dataclass(frozen=True, slots=True)
class Tf32Tile(_OfPatches):
    """Of fp32 on the tensor cores of any GPU since sm_80; how a block's warps lie over m and n; steps under way.

    products  1: in tf32; 3: in fp32, by what rounding to tf32 gives and what it leaves over
    """

    warps: tuple[int, int]
    stages: int
    products: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warps[0] * self.warps[1] * 32

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        rows = 16 * self.warps[0] * (self.n + _PAD * self.warps[1])
        return 4 * max(self.stages * self.k * (self.m + self.n), rows)

    def variant(self, dtype: torch.dtype, aligned: bool, split: bool = False) -> Variant:
        """The kernel."""
        constants = (
            ("TILE_M", self.m),
            ("TILE_N", self.n),
            ("TILE_K", self.k),
            ("WARPS_M", self.warps[0]),
            ("WARPS_N", self.warps[1]),
            ("STAGES", self.stages),
            ("PRODUCTS", self.products),
            ("ALIGNED", int(aligned)),
        )
        return Variant("sparse_conv_tf32.cu", "sparse_conv_tf32", constants, dynamic_shared_bytes=self.shared_bytes)

    @property
    def packing(self) -> str:
        """In what lanes multiply by, rounded or not."""
        return f"lanes of {self.k}x{self.n}, {'rounded' if self.products == 1 else 'whole'}"

    def pack(self, weight: Tensor) -> Tensor:
        """[volume * steps of k channels, tiles of n, k / 8, n / 16, 32, 4]: what a lane has of 8 x 16, side by side."""
        padded = _padded(weight, self.k, self.n)
        volume, ci, co = padded.shape
        parts = padded.view(volume * ci // self.k, self.k // 8, 2, 4, co // self.n, self.n // 16, 2, 8)
        lanes = parts.permute(0, 4, 1, 5, 7, 3, 6, 2).flatten(4, 5).flatten(5, 6)
        return round_to_tf32(lanes) if self.products == 1 else lanes.contiguous()


@dataclass(frozen=True, slots=True)
class WgmmaTile:
    """In 16 bits on Hopper's tensor cores, of aligned inputs.

    stages    steps under way
    bringers  threads that gather
    blocks    of a multiprocessor, at least
    """

    m: int
    n: int
    stages: int
    bringers: int
    blocks: int

    @property
    def early(self) -> bool:
        """Beside the end of the kernel before."""
        return True

    def grid(self, most: int, likely: int, co: int, parts: int, multiprocessors: int) -> int:
        """So many that each has a tile if no more are there than are likely; else some have several."""
        rows = likely if parts == 1 else likely * 3 // 2  # half of them have offsets of a part before the last, or so
        return blocks(min(most * parts, rows), self.m) * blocks(co, self.n)

    @property
    def k(self) -> int:
        """Of a panel: two of them are multiplied at a time, whichever offsets they are of."""
        return _PANEL

    @property
    def threads(self) -> int:
        """Threads of a block: a warpgroup multiplies 64 rows."""
        return 2 * self.m + self.bringers

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
            ("SPLIT", int(split)),
        )
        shared_bytes = _BARRIERS_BYTES + self.stages * (self.m + self.n) * 2 * self.k * 2 + _LOOKED_UP * self.m * 4
        early = 1  # the cluster of a kernel that may begin before the one before it has ended
        return Variant("sparse_conv_wgmma.cu", "sparse_conv_wgmma", constants, ("sm_90a",), shared_bytes, early)

    @property
    def packing(self) -> str:
        """In panels."""
        return f"panels of {self.n}"

    def pack(self, weight: Tensor) -> Tensor:
        """[volume * panels of k channels, tiles of n, n, k]; piece p of row n lies at p xor n / 2 % 4."""
        return _panels(_padded(weight, self.k, self.n), self.n)


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
        padded, wide = _padded(weight, _PANEL, self.n), min(8, self.n // 4)
        volume, ci, co = padded.shape
        together = min(self.k, 32)  # lane % 4, product, half, neighbour
        pairs = padded.view(volume, ci // together, 4, together // 16, 2, 2, co).permute(0, 1, 3, 4, 2, 5, 6)
        in_turns = pairs.reshape(volume, ci, co // (4 * wide), 4, wide // 2, 2)
        return _panels(in_turns.transpose(3, 4).reshape(volume, ci, co), self.n)


def piece_of(channels: int) -> int:
    """How many of an input's channels a ResidentTile reads at a time."""
    return PIECE // 2 if channels <= 16 else PIECE


def _panels(padded: Tensor, n: int) -> Tensor:
    """[volume * panels of 32 channels, tiles of n, n, 32]; piece p of row n lies at p xor n / 2 % 4."""
    volume, ci, co = padded.shape
    tiles = padded.view(volume * ci // _PANEL, _PANEL, co // n, n).permute(0, 2, 3, 1)
    pieces = tiles.reshape(*tiles.shape[:2], n // 8, 8, _PANEL // PIECE, PIECE)
    row, piece = torch.arange(8)[:, None], torch.arange(_PANEL // PIECE)
    return pieces[:, :, :, row, row // 2 ^ piece].contiguous()


def _padded(weight: Tensor, k: int, n: int) -> Tensor:
    volume, ci, co = weight.shape
    data = weight.new_zeros(volume, blocks(ci, k) * k, blocks(co, n) * n)
    data[:, :ci, :co] = weight
    return data
