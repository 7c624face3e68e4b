"""Which tile a sparse convolution takes: a rule, by its shape and the GPU."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.precision import NATIVE
from lacuna_kernels.cuda.scan import blocks
from lacuna_kernels.cuda.sparse_conv_hopper import ResidentTile, WgmmaTile, rows_in_tiles
from lacuna_kernels.cuda.sparse_conv_tiles import MmaTile, Tf32Tile, Tile
from lacuna_kernels.graph import Precision

FP32_TILES = (
    *(Tf32Tile(128, 128, 16, (4, 4), 4, 3), Tf32Tile(128, 96, 16, (4, 3), 4, 3), Tf32Tile(128, 64, 16, (4, 2), 4, 3)),
    *(Tf32Tile(128, 32, 32, (8, 1), 3, 3), Tf32Tile(128, 32, 16, (8, 1), 4, 3)),
)
TF32_TILES = (
    *(Tf32Tile(128, 128, 16, (4, 2), 4), Tf32Tile(128, 96, 32, (4, 2), 3), Tf32Tile(128, 96, 16, (4, 2), 4)),
    *(Tf32Tile(128, 64, 32, (4, 2), 3), Tf32Tile(128, 64, 16, (4, 2), 4)),
    *(Tf32Tile(128, 32, 32, (8, 1), 3), Tf32Tile(128, 32, 16, (8, 1), 4)),
)
MMA_TILES = (
    *(MmaTile(128, 128, 32, (4, 2), 4), MmaTile(128, 128, 16, (4, 2), 4)),
    *(MmaTile(128, 96, 64, (4, 2)), MmaTile(64, 96, 32, (2, 2), 4), MmaTile(128, 96, 16, (4, 2), 4)),
    *(MmaTile(128, 64, 64, (4, 2)), MmaTile(128, 64, 32, (4, 2)), MmaTile(128, 64, 16, (4, 2))),
    *(MmaTile(128, 32, 32, (8, 1)), MmaTile(128, 32, 16, (8, 1))),
)
_WIDEST, _WIDE, _MIDDLE = WgmmaTile(128, 256, 4, 128, 1), WgmmaTile(64, 128, 4, 128, 2), WgmmaTile(128, 96, 3, 128, 2)
_TALL = WgmmaTile(128, 128, 3, 128, 2, 2)
_NARROW, _NARROWEST = WgmmaTile(64, 64, 3, 96, 4), WgmmaTile(64, 32, 3, 96, 5)
WGMMA_TILES = (_WIDEST, _TALL, _WIDE, _MIDDLE, _NARROW, _NARROWEST)
RESIDENT_TILES = (
    *(ResidentTile(16, 16, 4, 8), ResidentTile(16, 32, 4, 7), ResidentTile(16, 64, 2, 6)),
    *(ResidentTile(32, 16, 2, 8), ResidentTile(32, 32, 2, 7), ResidentTile(32, 64, 2, 5)),
    *(ResidentTile(64, 16, 2, 5), ResidentTile(64, 32, 2, 5), ResidentTile(64, 64, 2, 4)),
    *(ResidentTile(96, 32, 1, 5), ResidentTile(96, 96, 1, 4), ResidentTile(128, 96, 1, 3)),
    ResidentTile(128, 128, 1, 3),
)
PORTABLE: Mapping[Precision, tuple[Tile, ...]] = {
    Precision.FP32: FP32_TILES,
    Precision.TF32: TF32_TILES,
    Precision.FP16: MMA_TILES,
    Precision.BF16: MMA_TILES,
}
"""Tiles that run on every GPU since sm_80. All of a precision add up in one order."""
VARIANTS = (
    *(tile.variant(dtype, a) for tile in MMA_TILES for dtype in (torch.float16, torch.bfloat16) for a in (True, False)),
    *(tile.variant(torch.float32, aligned) for tile in (*FP32_TILES, *TF32_TILES) for aligned in (True, False)),
    *(
        t.variant(dtype, True, s)
        for t in WGMMA_TILES
        for dtype in (torch.float16, torch.bfloat16)
        for s in (False, True)
    ),
    *(tile.variant(dtype, True) for tile in RESIDENT_TILES for dtype in (torch.float16, torch.bfloat16)),
)


@dataclass(frozen=True, slots=True)
class ConvShape:
    """What the choice of a tile depends on.

    aligned   whether 16 bytes of the input can be copied at a time
    rows      of the output, about
    single    whether each output row has one offset, as with inverse convolutions by as much as the stride
    shortcut  channels of the shortcut, 0 without
    stride    of the level of the rows, the largest of its axes: how many neighbours there are depends on it
    split     whether the offsets are in several parts
    tf32      whether fp32 may be rounded to tf32
    volume    kernel offsets
    readable  whether the input's channels, and zeros that follow them, can be read as a ResidentTile does
    """

    ci: int
    co: int
    dtype: torch.dtype
    aligned: bool = False
    rows: int = 0
    single: bool = False
    shortcut: int = 0
    stride: int = 1
    split: bool = False
    tf32: bool = False
    volume: int = 1
    readable: bool = False

    @property
    def precision(self) -> Precision:
        """What is computed in."""
        return Precision.TF32 if self.tf32 else NATIVE[self.dtype]


def candidates(shape: ConvShape, limits: DeviceLimits | None = None) -> list[Tile]:
    """Tiles for a layer, best first, that add up in one order: those that run on any GPU.

    On Hopper, by the measurements of an H200, one comes before them; where weights can stay, tiles for that come alone.
    """
    portable = _portable(shape)
    if limits is None or not limits.hopper:
        return portable
    if stay := resident(shape):
        return stay
    wide = shape.ci >= _LEAST_IN and shape.dtype is not torch.float32
    return [_of_hopper(shape, limits.multiprocessors), *portable] if shape.aligned and wide else portable


def resident(shape: ConvShape) -> list[Tile]:
    """Tiles whose weights stay, that can make a layer: then they do, however many rows it has, so that bits stay.

    None pads to more than twice the columns. Linear layers of fewer channels than a MinkUNet's head were not measured.
    """
    if not shape.readable or shape.dtype.itemsize != 2 or shape.split or shape.shortcut:
        return []
    if shape.volume == 1 and shape.ci < _LINEAR_LEAST_IN:
        return []
    most = 2 * _padded_to(shape.co, 16)
    fit = [tile for tile in RESIDENT_TILES if 0 <= tile.k - shape.ci < 16 and shape.co <= tile.n <= most]
    return [tile for tile in fit if shape.volume <= tile.offsets]


def _portable(shape: ConvShape) -> list[Tile]:
    """All that run on every GPU since sm_80: fewest padded products, then the widest."""
    return sorted(
        PORTABLE[shape.precision], key=lambda t: (_padded_to(shape.co, t.n), _padded_to(shape.ci, t.k), -t.n, -t.k)
    )


_LEAST_IN, _LINEAR_LEAST_IN = 32, 96
_TALL_TURNS = 2.5
"""Tiles one after another, below which those of half as many rows end sooner."""


def _of_hopper(shape: ConvShape, multiprocessors: int) -> Tile:
    """As wide as the layer if all multiprocessors have a tile then, else smaller ones."""
    if shape.co <= _NARROWEST.n:
        return _NARROWEST
    n = min((256, 128, 96, 64), key=lambda width: (_padded_to(shape.co, width), -width))
    if n == 256 and blocks(shape.rows, _WIDEST.m) * blocks(shape.co, n) >= 0.8 * multiprocessors:
        return _WIDEST
    rows = rows_in_tiles(shape.rows, shape.split)
    if n == 128 and blocks(rows, _TALL.m) * blocks(shape.co, n) >= _TALL_TURNS * _TALL.blocks * multiprocessors:
        return _TALL
    return {96: _MIDDLE, 64: _NARROW}.get(n, _WIDE)


def _padded_to(channels: int, n: int) -> int:
    return blocks(channels, n) * n
