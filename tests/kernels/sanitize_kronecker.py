"""Run every variant of the Kronecker-sparse kernels once on small sizes that miss the tile; for compute-sanitizer."""

import torch

from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker_linear import Epilogue, ks_matmul
from lacuna_kernels.cuda.kronecker_tiles import TILES, Tile
from lacuna_kernels.ops.activation import Activation
from tests.kernels.sanitized import every_variant_of

SOURCES = {"ks_matmul_columns.cu", "ks_matmul_mma.cu", "ks_matmul_simt.cu"}


def multiply(device: Device, tile: Tile, dtype: torch.dtype) -> None:
    """Launch a tile with vectors (16 bytes at once) and without, with a count and every part of the epilogue."""
    for b, c, d in ((tile.b + 8, tile.step * 4 + 8, tile.d), (tile.b + 1, tile.step + 1, tile.d + 1)):
        x = torch.ones(tile.n + 2, 2 * c * d, dtype=dtype, device="cuda")
        values = torch.ones(2, b, c, d, dtype=dtype, device="cuda")
        y = torch.ones(tile.n + 2, 2 * b * d, dtype=dtype, device="cuda")
        bias = torch.ones(2 * b * d, device="cuda")
        count = torch.tensor([tile.n + 1], dtype=torch.int32, device="cuda")
        ks_matmul(device, x, values, y, Epilogue(bias, y, Activation.RELU), count=count, tile=tile)


def main() -> None:
    """Launch each tile for each of its types."""
    with every_variant_of(SOURCES) as device:
        for dtype, tiles in TILES.items():
            for tile in tiles:
                multiply(device, tile, dtype)


if __name__ == "__main__":
    main()
