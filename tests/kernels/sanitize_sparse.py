"""Run every variant of the kernels for points and sites once, on a small ragged batch; for compute-sanitizer."""

from itertools import product

import torch

from lacuna_kernels.cuda.coordinates import SiteBuffer
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.devoxelize import devoxelize_nearest, devoxelize_trilinear
from lacuna_kernels.cuda.edges import VECTOR_BYTES, edge_sums
from lacuna_kernels.cuda.global_pool import global_pool
from lacuna_kernels.cuda.row_means import row_means, row_means_work
from lacuna_kernels.cuda.scan import THREADS as SCANNED_AT_ONCE
from lacuna_kernels.cuda.scan import TILE as SCAN_TILE
from lacuna_kernels.cuda.scan import exclusive_scan, scan_work
from lacuna_kernels.cuda.sort import FEW_TILES, TILE, sort, sort_work
from lacuna_kernels.cuda.sparse_conv import pack_weight, sparse_conv
from lacuna_kernels.cuda.sparse_conv_choice import FP32_TILES, MMA_TILES, RESIDENT_TILES, TF32_TILES, WGMMA_TILES
from lacuna_kernels.cuda.sparse_to_bev import sparse_to_bev
from lacuna_kernels.cuda.voxelize import Grid, PlacementBuffer, PointBuffer, site_of_points
from lacuna_kernels.ops.activation import Activation
from lacuna_kernels.ops.coordinates import submanifold_geometry
from lacuna_kernels.types import Geometry
from tests.cases import GRAPHS, CloudCase
from tests.kernels.device_graphs import paired
from tests.kernels.device_sites import cloud_on_device, counted, ints, mapped, poisoned, strided, sums_for, voxelized
from tests.kernels.sanitized import noted

HALVING = Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1))
CELLS = Geometry((2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SOURCES = {
    "devoxelize.cu",
    "edge_sums.cu",
    "edges.cu",
    "global_pool.cu",
    "kernel_map.cu",
    "key_order.cu",
    "row_means.cu",
    "scan.cu",
    "sites.cu",
    "sort.cu",
    "sparse_conv_mma.cu",
    "sparse_conv_resident.cu",
    "sparse_conv_tf32.cu",
    "sparse_conv_wgmma.cu",
    "sparse_to_bev.cu",
    "tile_order.cu",
    "voxelize.cu",
}


def features(rows: int, channels: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.ones(rows, channels, dtype=dtype, device="cuda")


def convolve(device: Device, sites: SiteBuffer) -> None:
    """Each tile with 16-byte copies and, if it can, without, with all of the epilogue, with a map and without.

    Those whose weights stay with a map, or if they have no room for its offsets without.
    """
    maps = [mapped(device, sites, sites, submanifold_geometry((3, 3, 3), (1, 1, 1)), parts=parts) for parts in (1, 3)]
    for dtype in DTYPES:
        for tile in (*FP32_TILES, *TF32_TILES) if dtype is torch.float32 else (*MMA_TILES, *WGMMA_TILES):
            widths = [(tile.k + 8, tile.n + 8)] + [(tile.k + 3, tile.n + 5)] * (tile not in WGMMA_TILES)
            for ci, co in widths:
                x, y = features(sites.capacity, ci, dtype), poisoned(sites.capacity, co, dtype=dtype)
                bias = torch.ones(co, device="cuda")
                for volume, used in ((27, maps[0]), (27, maps[1]), (1, None)):
                    packed = pack_weight(torch.ones(volume, ci, co, device="cuda"), dtype, tile)
                    more = {"bias": bias, "residual": y, "activation": Activation.RELU}
                    more |= sums_for(used, packed, y) if used else {}
                    sparse_conv(device, x, packed, used, sites.count, y, **more)
        for tile in RESIDENT_TILES if dtype.itemsize == 2 else ():
            x, y = features(sites.capacity, tile.k, dtype), poisoned(sites.capacity, tile.n, dtype=dtype)
            volume, used = (27, maps[0]) if tile.offsets >= 27 else (1, None)
            packed = pack_weight(torch.ones(volume, tile.k, tile.n, device="cuda"), dtype, tile)
            bias = torch.ones(tile.n, device="cuda")
            more = {"bias": bias, "residual": y, "activation": Activation.RELU}
            sparse_conv(device, x, packed, used, sites.count, y, **more)
            sparse_conv(device, x, packed, used, sites.count, poisoned(sites.capacity, tile.n), residual=y)


def follow_points(
    device: Device, points: PointBuffer, placement: PlacementBuffer, fine: SiteBuffer, coarse: SiteBuffer
) -> None:
    """Means of points on sites, and features of sites at points, on items, and in an image."""
    capacity, n = coarse.capacity, len(points.points)
    rows = ints(n)
    site_of_points(device, placement, points.count, coarse, (2, 2, 2), rows)
    for source, result in product(DTYPES, repeat=2):
        work, y = ints(row_means_work(n, capacity)), poisoned(capacity, 8, dtype=result)
        row_means(device, features(n, 5, source), rows, points.count, y[:, :5], coarse.count, work, padding=3)
    for dtype in DTYPES:
        x, y = features(fine.capacity, 37, dtype), poisoned(n, 37, dtype=dtype)
        devoxelize_nearest(device, x, placement, points.count, y)
        devoxelize_trilinear(device, x, placement, fine, (1, 1, 1), points.count, y)
        for mode in ("mean", "max"):
            pooled = poisoned(len(fine.offsets) - 1, 37, dtype=dtype)
            global_pool(device, x, fine.offsets, pooled, mode)
        image = poisoned(len(fine.offsets) - 1, 37 * 3, 4, 5, dtype=dtype)
        sparse_to_bev(device, x, fine, (5, 4, 3), image)


def follow_edges(device: Device) -> None:
    """Pairs of edges, and sums over few and many of them, with and without whole vectors."""
    for case in (GRAPHS[1], GRAPHS[-1]):
        batch = case.batch(1)
        pairs, _ = paired(device, batch, case.relations, ints)
        for dtype in DTYPES:
            for channels in (3 * VECTOR_BYTES // dtype.itemsize, 5):
                x = features(len(batch["nodes"].data), channels, dtype)
                edge_sums(device, x, pairs, poisoned(len(pairs.sources), channels, dtype=dtype), mean=True)


def main() -> None:
    """Run all."""
    with noted() as device:
        cloud = cloud_on_device(CloudCase("ragged", (300, 0, 1, 130)).value())
        placement, fine, _ = voxelized(device, cloud, Grid((0, 0, 0), (0.5, 0.5, 0.5)))
        voxelized(device, cloud, Grid((0, 0, 0), (0.5, 0.5, 0.5), (3, 3, 3)), capacity=4)
        coarse, _ = strided(device, fine, HALVING, None, 8 * fine.capacity)
        strided(device, fine, HALVING, (4, 4, 4), 5)
        mapped(device, fine, coarse, HALVING)
        mapped(device, fine, fine, submanifold_geometry((5, 3, 3), (1, 2, 1)))
        mapped(device, fine, fine, submanifold_geometry((3, 3, 3), (1, 1, 1)), dense=True, regions=2)
        mapped(device, coarse, fine, HALVING, backward=True)
        cells, _ = strided(device, fine, CELLS, None, fine.capacity)
        mapped(device, fine, cells, CELLS)
        mapped(device, cells, fine, CELLS, backward=True)
        convolve(device, fine)
        many = (FEW_TILES + 1) * TILE
        sort(device, ints(many), counted(many), 8, ints(sort_work(many)))
        wide = (SCANNED_AT_ONCE + 1) * SCAN_TILE
        exclusive_scan(device, ints(wide), ints(wide), None, ints(scan_work(wide)))
        follow_points(device, cloud, placement, fine, coarse)
        follow_edges(device)


if __name__ == "__main__":
    main()
