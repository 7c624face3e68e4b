"""The kernels that are shipped: what CI compiles and what an image's cache is filled with."""

from lacuna_kernels.cuda import (
    argmax,
    coordinates,
    devoxelize,
    edges,
    elementwise,
    global_pool,
    kernel_map,
    key_order,
    kronecker_linear,
    layer_norm,
    row_means,
    scan,
    sort,
    sparse_conv_choice,
    sparse_to_bev,
    tile_order,
    voxelize,
)
from lacuna_kernels.cuda.compiler import Variant

SHIPPED: tuple[Variant, ...] = (
    *argmax.VARIANTS,
    *coordinates.VARIANTS,
    *devoxelize.VARIANTS,
    *edges.VARIANTS,
    *elementwise.VARIANTS,
    *global_pool.VARIANTS,
    *kernel_map.VARIANTS,
    *key_order.VARIANTS,
    *kronecker_linear.VARIANTS,
    *layer_norm.VARIANTS,
    *row_means.VARIANTS,
    *scan.VARIANTS,
    *sort.VARIANTS,
    *sparse_conv_choice.VARIANTS,
    *sparse_to_bev.VARIANTS,
    *tile_order.VARIANTS,
    *voxelize.VARIANTS,
)
"""Those that the wrappers beside this file name."""
