"""Launches of src/sparse_conv_*.cu: sparse convolution, and linear layers on sites and points."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ACTIVATION_CODES, ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kernel_map import KernelMap
from lacuna_kernels.cuda.scan import blocks
from lacuna_kernels.ops.activation import DEFAULT_SLOPE, Activation

PIECE = 8  # elements of 16 bytes, in 16-bit types


@dataclass(frozen=True, slots=True)
class Tile:
    """What a block makes at a time: m rows x n channels, from k channels of the input. No tile changes a sum's order.

    warps   how a block's warps lie over m and n (tensor cores), or rows a thread and 0 (fp32)
    stages  steps that are under way at once
    """

    m: int
    n: int
    k: int
    warps: tuple[int, int]
    stages: int = 3

    @property
    def threads(self) -> int:
        """Threads of a block."""
        rows_m, warps_n = self.warps
        return rows_m * warps_n * 32 if warps_n else self.m // rows_m * (self.n // 4)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        if not self.warps[1]:
            return 0
        stage = 2 * (self.m * (self.k + PIECE) + self.k * (self.n + PIECE))
        sums = 4 * 16 * self.warps[0] * (self.n + PIECE * self.warps[1])
        return max(self.stages * stage, sums)


MMA_TILES = (
    *(Tile(128, 128, 32, (4, 2), 4), Tile(128, 128, 16, (4, 2), 4)),
    *(Tile(128, 96, 64, (4, 2)), Tile(64, 96, 32, (2, 2), 4), Tile(128, 96, 16, (4, 2), 4)),
    *(Tile(128, 64, 64, (4, 2)), Tile(128, 64, 32, (4, 2)), Tile(128, 64, 16, (4, 2))),
    *(Tile(128, 32, 32, (8, 1)), Tile(128, 32, 16, (8, 1))),
)
FP32_TILES = (Tile(64, 64, 16, (4, 0)), Tile(64, 32, 16, (4, 0)))


def candidates(ci: int, co: int, dtype: torch.dtype) -> list[Tile]:
    """Tiles for a layer, best first: fewest padded products, then the widest. All run on every GPU since sm_80."""
    tiles = FP32_TILES if dtype is torch.float32 else MMA_TILES
    return sorted(tiles, key=lambda tile: (blocks(co, tile.n) * tile.n, blocks(ci, tile.k) * tile.k, -tile.n, -tile.k))


def variant(tile: Tile, dtype: torch.dtype, aligned: bool) -> Variant:
    """The kernel for a tile."""
    shape: tuple[tuple[str, int | str], ...] = (("TILE_M", tile.m), ("TILE_N", tile.n), ("TILE_K", tile.k))
    if dtype is torch.float32:
        return Variant("sparse_conv_fp32.cu", "sparse_conv_fp32", (*shape, ("ROWS", tile.warps[0])))
    more = (
        ("ELEMENT", ELEMENTS[dtype]),
        ("WARPS_M", tile.warps[0]),
        ("WARPS_N", tile.warps[1]),
        ("STAGES", tile.stages),
        ("ALIGNED", int(aligned)),
    )
    return Variant("sparse_conv_mma.cu", "sparse_conv_mma", shape + more, dynamic_shared_bytes=tile.shared_bytes)


VARIANTS = (
    *(
        variant(tile, dtype, aligned)
        for tile in MMA_TILES
        for dtype in (torch.float16, torch.bfloat16)
        for aligned in (True, False)
    ),
    *(variant(tile, torch.float32, True) for tile in FP32_TILES),
)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A layer's weight as the kernels read it: [k, padded channels, padded out_channels], zeros in the padding."""

    data: Tensor
    channels: int
    out_channels: int
    tile: Tile


def pack_weight(weight: Tensor, dtype: torch.dtype, tile: Tile | None = None) -> PackedWeight:
    """Pack a weight [k, channels, out_channels] for a tile, or the best one; of a linear layer, give weight.T[None]."""
    volume, ci, co = weight.shape
    tile = tile or candidates(ci, co, dtype)[0]
    data = weight.new_zeros((volume, blocks(ci, tile.k) * tile.k, blocks(co, tile.n) * tile.n), dtype=dtype)
    data[:, :ci, :co] = weight
    return PackedWeight(data, ci, co, tile)


def sparse_conv(
    device: Device,
    x: Tensor,
    weight: PackedWeight,
    kernel_map: KernelMap | None,
    count: Tensor,
    y: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    slope: float = DEFAULT_SLOPE,
) -> None:
    """Launch y = f(sum over k of x[map[k]] @ weight[k] + bias + residual) for the output rows in use.

    x           [input rows, channels]; like y and residual it may be some columns of a wider matrix, as in a concat
    kernel_map  None for the identity, with one offset: a linear layer
    count       int32 [1], output rows in use
    y           [capacity, out_channels], of the type of x and the weight
    bias        fp32 [out_channels]
    residual    [capacity, out_channels], of the type of y; may be y
    """
    tile, volume = weight.tile, len(weight.data)
    capacity, co = y.shape
    assert x.shape[1] == weight.channels and co == weight.out_channels and x.dtype == weight.data.dtype == y.dtype
    map_rows, order, present = (
        (kernel_map.rows, kernel_map.order, kernel_map.present) if kernel_map else (None, None, None)
    )
    words = 1 if present is None else present.shape[1]
    assert map_rows is None or map_rows.shape == (volume, capacity)
    tiles = blocks(capacity, tile.m) * (weight.data.shape[2] // tile.n)
    device.kernel(variant(tile, x.dtype, _aligned(x)))(
        (tiles, 1, 1),
        (tile.threads, 1, 1),
        *(x, x.stride(0), weight.channels, weight.data, weight.data.shape[2]),
        *(map_rows, present, volume, words, capacity, order, count),
        *(bias, residual, 0 if residual is None else residual.stride(0), y, y.stride(0), co),
        *(ACTIVATION_CODES[activation], float(slope)),
    )


def _aligned(x: Tensor) -> bool:
    """Whether 16 bytes can be copied at a time; the fp32 kernel does not mind."""
    return x.dtype is torch.float32 or not (x.shape[1] % PIECE or x.stride(0) % PIECE or x.data_ptr() % 16)
