"""Launches of src/sparse_conv_*.cu: sparse convolution, and linear layers on sites and points."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ACTIVATION_CODES
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kernel_map import KernelMap
from lacuna_kernels.cuda.scan import blocks
from lacuna_kernels.cuda.sparse_conv_choice import ConvShape, candidates
from lacuna_kernels.cuda.sparse_conv_hopper import ResidentTile
from lacuna_kernels.cuda.sparse_conv_tiles import Tile
from lacuna_kernels.ops.activation import DEFAULT_SLOPE, Activation

PROGRESS = 3
"""Numbers by which the blocks of a launch tell one another how far they are."""
MOST_ELEMENTS = 2**34
"""Of a matrix that is read: pieces of 8 are counted in 31 bits."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A layer's weight as the kernel of a tile reads it, and after it that of its shortcut, if it has one."""

    data: Tensor
    volume: int
    channels: int
    out_channels: int
    tile: Tile
    shortcut_channels: int = 0


def pack_weight(
    weight: Tensor, dtype: torch.dtype, tile: Tile | None = None, shortcut: Tensor | None = None
) -> PackedWeight:
    """Pack a weight [k, channels, out_channels], by default for the best portable tile.

    That of a linear layer is weight.T[None].

    shortcut  [shortcut channels, out_channels]
    """
    volume, ci, co = weight.shape
    tile = tile or candidates(ConvShape(ci, co, dtype))[0]
    data = tile.pack(weight.to(dtype))
    if shortcut is None:
        return PackedWeight(data, volume, ci, co, tile)
    data = torch.cat([data, tile.pack(shortcut[None].to(dtype))])
    return PackedWeight(data, volume, ci, co, tile, len(shortcut))


def part_sums(parts: int, capacity: int, weight: PackedWeight) -> tuple[int, int, int]:
    """Shape of the buffer in which sums of all parts of the offsets but the last wait, whole tiles a row."""
    return parts - 1, capacity, blocks(weight.out_channels, weight.tile.n) * weight.tile.n


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
    shortcut: Tensor | None = None,
    activation: Activation | None = None,
    slope: float = DEFAULT_SLOPE,
    settled: bool = False,
    likely: int | None = None,
    sums: Tensor | None = None,
    progress: Tensor | None = None,
) -> None:
    """Launch y = f(bias + residual + sum over k of x[map[k]] @ weight[k] + shortcut @ its weight) for the rows in use.

    x           [input rows, channels]; like y, residual and shortcut it may be some columns of a wider matrix, as in a
                concat; see ResidentTile for what may have to follow them
    kernel_map  None for the identity, with one offset: a linear layer
    count       int32 [1], output rows in use
    y           [capacity, out_channels], of the type of x and the weight; fp32, too, if a ResidentTile makes it
    bias        fp32 [out_channels]
    residual    [capacity, out_channels], of the type of x; may be y, if that has the same type
    shortcut    [capacity, shortcut channels], of the type of x
    settled     whether the kernel map and the count were there before the launch before this one on the stream, so that
                they may be read while that one runs
    likely      output rows that are likely to be in use, no more than the capacity
    sums        fp32 [*part_sums(parts, capacity, weight)], if the map is in several parts
    progress    int32 [PROGRESS], then: zeros, and they will be again; no launch that may overlap with this has the
                same, nor the one before it on the stream, nor the next
    """
    tile, volume = weight.tile, weight.volume
    capacity, co = y.shape
    resident = isinstance(tile, ResidentTile)
    assert x.shape[1] == weight.channels and co == weight.out_channels and x.dtype == weight.data.dtype
    assert y.dtype is x.dtype or (resident and y.dtype is torch.float32)
    assert residual is None or residual.dtype is x.dtype
    assert (0 if shortcut is None else shortcut.shape[1]) == weight.shortcut_channels
    read: tuple[Tensor | int | None, ...] = (*[None] * 6, 1, volume, 1)
    parts = 1
    if kernel_map is not None:
        m, parts = kernel_map, kernel_map.parts
        assert m.rows.shape == (volume, capacity)
        read = (m.rows, m.present, m.order, m.keys, m.ones, m.tiles, parts, volume, m.present.shape[2])
    assert shortcut is None or not resident
    if parts > 1:
        assert sums is not None and progress is not None and sums.shape == part_sums(parts, capacity, weight)
    assert max(given.stride(0) * len(given) for given in (x, shortcut) if given is not None) < MOST_ELEMENTS
    across = blocks(co, tile.n)
    aligned = all(_is_aligned(given, tile) for given in (x, shortcut) if given is not None)
    device.kernel(tile.variant(x.dtype, aligned, parts > 1))(
        (tile.grid(capacity, likely or capacity, co, parts, device.limits.multiprocessors), 1, 1),
        (tile.threads, 1, 1),
        *(x, x.stride(0), weight.channels),
        *(shortcut, 0 if shortcut is None else shortcut.stride(0), weight.shortcut_channels),
        *(weight.data, across * tile.n),
        *(*read, capacity, count),
        *(sums, 0 if sums is None else sums.shape[2], progress),
        *(bias, residual, 0 if residual is None else residual.stride(0), y, y.stride(0), co),
        *(ACTIVATION_CODES[activation], float(slope)),
        *([int(settled)] if tile.early else []),
        *([int(y.dtype is not x.dtype)] if resident else []),
    )


def _is_aligned(x: Tensor, tile: Tile) -> bool:
    """Whether pieces can be copied or read at a time, as the tile does."""
    if isinstance(tile, ResidentTile):
        return x.stride(0) % tile.piece == 0 and x.data_ptr() % (tile.piece * x.element_size()) == 0
    return are_whole_pieces(x.shape[1], x.stride(0), dtype=x.dtype) and x.data_ptr() % 16 == 0


def are_whole_pieces(*elements: int, dtype: torch.dtype = torch.float16) -> bool:
    """Whether so many are whole pieces of 16 bytes: channels, where they begin, and pitches."""
    return not any(number * dtype.itemsize % 16 for number in elements)
