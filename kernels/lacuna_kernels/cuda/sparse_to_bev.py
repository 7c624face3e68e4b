"""Launch of src/sparse_to_bev.cu: sites to a dense bird's-eye view."""

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.coordinates import SiteBuffer
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.row_means import row_block
from lacuna_kernels.cuda.scan import blocks
from lacuna_kernels.types import Triple


def _variant(dtype: torch.dtype) -> Variant:
    return Variant("sparse_to_bev.cu", "sparse_to_bev", (("ELEMENT", ELEMENTS[dtype]),))


VARIANTS = tuple(map(_variant, ELEMENTS))


def sparse_to_bev(device: Device, x: Tensor, sites: SiteBuffer, spatial_shape: Triple, image: Tensor) -> None:
    """Launch image[item, c*Z + z, y, x] = the features of the sites, zeros elsewhere.

    x              [capacity, channels]
    spatial_shape  cells (X, Y, Z); sites outside are left out
    image          [items, channels * Z, Y, X] of the type of x, contiguous
    """
    image.zero_()
    block = row_block(x.shape[1])
    device.kernel(_variant(x.dtype))(
        (blocks(sites.capacity, block[1]), 1, 1),
        block,
        *(x, x.stride(0), sites.coordinates, sites.count, *spatial_shape, x.shape[1], image),
    )
