"""Tiles of src/sparse_conv_*.cu: what a block makes at a time, and how weights lie for it; those of any GPU.

All of a precision add up in one order, and give the same bits, but for a ResidentTile (sparse_conv_hopper.py), with
which no other competes.
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
        return padded(weight, self.k, self.n).flatten(0, 1)


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
        whole = padded(weight, self.k, self.n)
        volume, ci, co = whole.shape
        parts = whole.view(volume * ci // self.k, self.k // 8, 2, 4, co // self.n, self.n // 16, 2, 8)
        lanes = parts.permute(0, 4, 1, 5, 7, 3, 6, 2).flatten(4, 5).flatten(5, 6)
        return round_to_tf32(lanes) if self.products == 1 else lanes.contiguous()


def padded(weight: Tensor, k: int, n: int) -> Tensor:
    """The weight [volume, channels, out_channels] with zeros up to multiples of k and n channels."""
    volume, ci, co = weight.shape
    data = weight.new_zeros(volume, blocks(ci, k) * k, blocks(co, n) * n)
    data[:, :ci, :co] = weight
    return data
