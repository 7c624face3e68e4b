"""Tiles of src/sparse_conv_*.cu: what a block makes at a time, and how weights lie for it.

All that share the offsets of a tile among equally many blocks add up in one order, and give the same bits.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.scan import blocks

PIECE = 8
"""Elements of 16 bytes, in 16-bit types."""
_BARRIERS_BYTES = 1024
_LOOKED_UP = 24
"""Offsets whose rows are in shared memory."""


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
    def parts(self) -> int:
        """Blocks that share the offsets of a tile; how many decides how sums are added up."""
        ...

    @property
    def early(self) -> bool:
        """Whether a launch may begin before the kernel before it has ended."""
        ...

    def grid(self, most: int, likely: int, co: int) -> int:
        """Blocks of a launch for at most so many rows of co channels, of which so many rows are likely to be there."""
        ...

    @property
    def threads(self) -> int:
        """Threads of a block."""
        ...

    def variant(self, dtype: torch.dtype, aligned: bool) -> Variant:
        """The kernel; aligned if 16 bytes of the input can be copied at a time, which it may need."""
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
    def parts(self) -> int:
        """One block has all offsets."""
        return 1

    @property
    def early(self) -> bool:
        """After the kernel before."""
        return False

    def grid(self, most: int, likely: int, co: int) -> int:
        """One a tile."""
        return blocks(most, self.m) * blocks(co, self.n)

    @property
    def packing(self) -> str:
        """Padded."""
        return f"{self.k}x{self.n}"

    def pack(self, weight: Tensor) -> Tensor:
        """[volume * padded channels, padded out_channels], zeros in the padding."""
        return _padded(weight, self.k, self.n).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class SimtTile(_OfPatches):
    """In fp32, by multiply-adds; `rows` of a thread, which has 4 channels of each."""

    rows: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.m // self.rows * (self.n // 4)

    def variant(self, dtype: torch.dtype, aligned: bool) -> Variant:
        """The kernel, which does not mind how the input lies."""
        constants = (("TILE_M", self.m), ("TILE_N", self.n), ("TILE_K", self.k), ("ROWS", self.rows))
        return Variant("sparse_conv_fp32.cu", "sparse_conv_fp32", constants)


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
        rows = 2 * 16 * self.warps[0] * (self.n + PIECE * self.warps[1])
        return max(self.stages * stage, rows)

    def variant(self, dtype: torch.dtype, aligned: bool) -> Variant:
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
class WgmmaTile:
    """In 16 bits on Hopper's tensor cores, of aligned inputs.

    stages    steps under way
    bringers  threads that gather
    blocks    of a multiprocessor, at least
    parts     blocks, a cluster, that share the offsets of a tile
    """

    m: int
    n: int
    stages: int
    bringers: int
    blocks: int
    parts: int = 1

    @property
    def early(self) -> bool:
        """Beside the end of the kernel before."""
        return True

    def grid(self, most: int, likely: int, co: int) -> int:
        """So many that each has a tile if no more are there than are likely; else some have several."""
        return blocks(min(most, likely), self.m) * blocks(co, self.n) * self.parts

    @property
    def k(self) -> int:
        """Of a panel: two of them are multiplied at a time, whichever offsets they are of."""
        return 32

    @property
    def threads(self) -> int:
        """Threads of a block: a warpgroup multiplies 64 rows."""
        return 2 * self.m + self.bringers

    def variant(self, dtype: torch.dtype, aligned: bool) -> Variant:
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
            ("TEAM", self.parts),
        )
        shared_bytes = _BARRIERS_BYTES + self.stages * (self.m + self.n) * 2 * self.k * 2 + _LOOKED_UP * self.m * 4
        return Variant("sparse_conv_wgmma.cu", "sparse_conv_wgmma", constants, ("sm_90a",), shared_bytes, self.parts)

    @property
    def packing(self) -> str:
        """In panels."""
        return f"panels of {self.n}"

    def pack(self, weight: Tensor) -> Tensor:
        """[volume * panels of k channels, tiles of n, n, k]; piece p of row n lies at p xor n / 2 % 4."""
        padded = _padded(weight, self.k, self.n)
        volume, ci, co = padded.shape
        tiles = padded.view(volume * ci // self.k, self.k, co // self.n, self.n).permute(0, 2, 3, 1)
        pieces = tiles.reshape(*tiles.shape[:2], self.n // 8, 8, self.k // PIECE, PIECE)
        row, piece = torch.arange(8)[:, None], torch.arange(self.k // PIECE)
        return pieces[:, :, :, row, row // 2 ^ piece].contiguous()


def _padded(weight: Tensor, k: int, n: int) -> Tensor:
    volume, ci, co = weight.shape
    data = weight.new_zeros(volume, blocks(ci, k) * k, blocks(co, n) * n)
    data[:, :ci, :co] = weight
    return data


FP32_TILES = (SimtTile(64, 64, 16, 4), SimtTile(64, 32, 16, 4))
MMA_TILES = (
    *(MmaTile(128, 128, 32, (4, 2), 4), MmaTile(128, 128, 16, (4, 2), 4)),
    *(MmaTile(128, 96, 64, (4, 2)), MmaTile(64, 96, 32, (2, 2), 4), MmaTile(128, 96, 16, (4, 2), 4)),
    *(MmaTile(128, 64, 64, (4, 2)), MmaTile(128, 64, 32, (4, 2)), MmaTile(128, 64, 16, (4, 2))),
    *(MmaTile(128, 32, 32, (8, 1)), MmaTile(128, 32, 16, (8, 1))),
)
_WIDEST, _WIDE, _MIDDLE = WgmmaTile(128, 256, 4, 128, 1), WgmmaTile(64, 128, 4, 128, 2), WgmmaTile(128, 96, 3, 128, 2)
_NARROW, _NARROWEST, _COARSE = WgmmaTile(64, 64, 3, 64, 4), WgmmaTile(64, 32, 3, 64, 5), replace(_WIDEST, parts=2)
WGMMA_TILES = (_WIDEST, _WIDE, _MIDDLE, _NARROW, _NARROWEST, _COARSE)
VARIANTS = (
    *(tile.variant(dtype, a) for tile in MMA_TILES for dtype in (torch.float16, torch.bfloat16) for a in (True, False)),
    *(tile.variant(torch.float32, True) for tile in FP32_TILES),
    *(tile.variant(dtype, True) for tile in WGMMA_TILES for dtype in (torch.float16, torch.bfloat16)),
)


@dataclass(frozen=True, slots=True)
class ConvShape:
    """What the choice of a tile depends on.

    aligned   whether 16 bytes of the input can be copied at a time
    rows      of the output, about
    single    whether each output row has one offset, as with inverse convolutions by as much as the stride
    shortcut  channels of the shortcut, 0 without
    stride    of the level of the rows, the largest of its axes: how many neighbours there are depends on it
    """

    ci: int
    co: int
    dtype: torch.dtype
    aligned: bool = False
    rows: int = 0
    single: bool = False
    shortcut: int = 0
    stride: int = 1


def candidates(shape: ConvShape, limits: DeviceLimits | None = None) -> list[Tile]:
    """Tiles for a layer, best first: on Hopper one by the measurements of an H200, then those that run on any GPU."""
    tiles: list[Tile] = [*_portable(shape)]
    wide = shape.ci >= _LEAST_IN and shape.dtype is not torch.float32
    if limits is not None and limits.hopper and shape.aligned and wide:
        tiles.insert(0, _of_hopper(shape, limits.multiprocessors))
    return tiles


def _portable(shape: ConvShape) -> list[Tile]:
    """All that run on every GPU since sm_80: fewest padded products, then the widest."""
    tiles: tuple[Tile, ...] = FP32_TILES if shape.dtype is torch.float32 else MMA_TILES
    return sorted(tiles, key=lambda t: (_padded_to(shape.co, t.n), _padded_to(shape.ci, t.k), -t.n, -t.k))


_LEAST_IN = 32
_COARSE_STRIDE = 16
"""From there on levels have few sites, of many neighbours: two blocks share the offsets of a tile. With 256 channels,
5,900 and eight times as many rows 52 and 225 us instead of 66 and 190. Not by the number of rows, on which bits would
depend then."""


def _of_hopper(shape: ConvShape, multiprocessors: int) -> Tile:
    """As wide as the layer if all multiprocessors have a tile then, else smaller ones."""
    if shape.co <= _NARROWEST.n:
        return _NARROWEST
    n = min((256, 128, 96, 64), key=lambda width: (_padded_to(shape.co, width), -width))
    if n == 256 and shape.stride >= _COARSE_STRIDE and not shape.single:
        return _COARSE
    if n == 256 and blocks(shape.rows, _WIDEST.m) * blocks(shape.co, n) >= 0.8 * multiprocessors:
        return _WIDEST
    return {96: _MIDDLE, 64: _NARROW}.get(n, _WIDE)


def _padded_to(channels: int, n: int) -> int:
    return blocks(channels, n) * n
