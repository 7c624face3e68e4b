"""Launches of src/devoxelize.cu: features of sites back at the points."""

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.coordinates import SiteBuffer
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.row_means import row_block
from lacuna_kernels.cuda.scan import blocks
from lacuna_kernels.cuda.voxelize import PlacementBuffer
from lacuna_kernels.types import Triple

THREADS = 256
POINTS = 32


def _variant(name: str, dtype: torch.dtype) -> Variant:
    return Variant("devoxelize.cu", name, (("ELEMENT", ELEMENTS[dtype]),))


VARIANTS = tuple(_variant(name, dtype) for name in ("devoxelize_nearest", "devoxelize_trilinear") for dtype in ELEMENTS)


def devoxelize_nearest(device: Device, x: Tensor, placement: PlacementBuffer, count: Tensor, y: Tensor) -> None:
    """Launch y[point] = x[voxel of the point], zeros for a point outside.

    x      [sites, channels]
    count  int32 [1], points in use
    y      [points, channels] of the type of x
    """
    channels = y.shape[1]
    block = row_block(channels)
    device.kernel(_variant("devoxelize_nearest", x.dtype))(
        (blocks(len(y), block[1]), 1, 1),
        block,
        *(x, x.stride(0), placement.voxel_of_point, count, y, y.stride(0), channels),
    )


def devoxelize_trilinear(
    device: Device, x: Tensor, placement: PlacementBuffer, sites: SiteBuffer, stride: Triple, count: Tensor, y: Tensor
) -> None:
    """Launch y[point] = weighted mean of x over the sites around it, zeros where there are none; as ops.devoxelize.

    x       [sites, channels], on sites of some stride
    count   int32 [1], points in use
    y       [points, channels] of the type of x
    """
    device.kernel(_variant("devoxelize_trilinear", x.dtype))(
        (blocks(len(y), POINTS), 1, 1),
        (THREADS, 1, 1),
        *(x, x.stride(0), placement.position, placement.voxels, count, *stride),
        *(*sites.found_by, y, y.stride(0), y.shape[1]),
    )
