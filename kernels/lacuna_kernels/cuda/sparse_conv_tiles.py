"""Tiles of src/sparse_conv_*.cu: what a block makes at a time, and how weights lie for it. All add up in one order."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.scan import blocks

PIECE = 8
"""Elements of 16 bytes, in 16-bit types."""
_SWIZZLED = 8  # rows, and pieces of 64 channels


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
    def threads(self) -> int:
        """Threads of a block."""
        ...

    def variant(self, dtype: torch.dtype, aligned: bool) -> Variant:
        """The kernel; aligned if 16 bytes of the input can be copied at a time, which it may need."""
        ...

    def pack(self, weight: Tensor) -> Tensor:
        """The weight [volume, channels, out_channels], in the order that the kernel reads it."""
        ...


@dataclass(frozen=True, slots=True)
class SimtTile:
    """In fp32, by multiply-adds; `rows` of a thread, which has 4 channels of each."""

    m: int
    n: int
    k: int
    rows: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.m // self.rows * (self.n // 4)

    def variant(self, dtype: torch.dtype, aligned: bool) -> Variant:
        """The kernel, which does not mind how the input lies."""
        constants = (("TILE_M", self.m), ("TILE_N", self.n), ("TILE_K", self.k), ("ROWS", self.rows))
        return Variant("sparse_conv_fp32.cu", "sparse_conv_fp32", constants)

    def pack(self, weight: Tensor) -> Tensor:
        """[volume, padded channels, padded out_channels], zeros in the padding."""
        return _padded(weight, self.k, self.n)


@dataclass(frozen=True, slots=True)
class MmaTile:
    """In 16 bits on the tensor cores of any GPU since sm_80; how a block's warps lie over m and n; steps under way."""

    m: int
    n: int
    k: int
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
        sums = 4 * 16 * self.warps[0] * (self.n + PIECE * self.warps[1])
        return max(self.stages * stage, sums)

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

    def pack(self, weight: Tensor) -> Tensor:
        """[volume, padded channels, padded out_channels], zeros in the padding."""
        return _padded(weight, self.k, self.n)


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
    def k(self) -> int:
        """A row of 128 bytes, which is swizzled as a whole."""
        return 64

    @property
    def threads(self) -> int:
        """Threads of a block: a warpgroup multiplies 64 rows."""
        return 2 * self.m + self.bringers

    def variant(self, dtype: torch.dtype, aligned: bool) -> Variant:
        """The kernel."""
        assert aligned
        constants: tuple[tuple[str, int | str], ...] = (
            ("ELEMENT", ELEMENTS[dtype]),
            ("TILE_M", self.m),
            ("TILE_N", self.n),
            ("STAGES", self.stages),
            ("BRINGERS", self.bringers),
            ("BLOCKS", self.blocks),
        )
        shared_bytes = 1024 + self.stages * (self.m + self.n) * 128
        return Variant("sparse_conv_wgmma.cu", "sparse_conv_wgmma", constants, ("sm_90a",), shared_bytes)

    def pack(self, weight: Tensor) -> Tensor:
        """[volume, chunks of k channels, tiles of n, n, k], swizzled: piece p of row n lies at p xor n % 8."""
        padded = _padded(weight, self.k, self.n)
        volume, ci, co = padded.shape
        tiles = padded.view(volume, ci // self.k, self.k, co // self.n, self.n).permute(0, 1, 3, 4, 2)
        pieces = tiles.reshape(*tiles.shape[:3], self.n // _SWIZZLED, _SWIZZLED, _SWIZZLED, PIECE)
        row, piece = torch.arange(_SWIZZLED)[:, None], torch.arange(_SWIZZLED)
        return pieces[:, :, :, :, row, row ^ piece].contiguous()


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
WGMMA_TILES = (
    *(WgmmaTile(128, 256, 4, 128, 1), WgmmaTile(128, 256, 4, 64, 1), WgmmaTile(64, 256, 2, 64, 2)),
    *(WgmmaTile(256, 128, 4, 128, 1), WgmmaTile(128, 128, 6, 128, 1), WgmmaTile(64, 128, 4, 128, 2)),
    *(WgmmaTile(256, 96, 5, 128, 1), WgmmaTile(128, 96, 3, 128, 2), WgmmaTile(64, 96, 4, 128, 2)),
    *(WgmmaTile(256, 64, 5, 128, 1), WgmmaTile(128, 64, 4, 128, 2), WgmmaTile(64, 64, 4, 128, 3)),
    *(WgmmaTile(64, 64, 4, 64, 3), WgmmaTile(128, 32, 5, 128, 2), WgmmaTile(64, 32, 5, 64, 3)),
)


def candidates(ci: int, co: int, dtype: torch.dtype) -> list[Tile]:
    """Tiles for a layer, best first: fewest padded products, then the widest. All run on every GPU since sm_80."""
    tiles: tuple[Tile, ...] = FP32_TILES if dtype is torch.float32 else MMA_TILES
    return sorted(tiles, key=lambda tile: (blocks(co, tile.n) * tile.n, blocks(ci, tile.k) * tile.k, -tile.n, -tile.k))


VARIANTS = (
    *(tile.variant(dtype, a) for tile in MMA_TILES for dtype in (torch.float16, torch.bfloat16) for a in (True, False)),
    *(tile.variant(torch.float32, True) for tile in FP32_TILES),
    *(tile.variant(dtype, True) for tile in WGMMA_TILES for dtype in (torch.float16, torch.bfloat16)),
)
