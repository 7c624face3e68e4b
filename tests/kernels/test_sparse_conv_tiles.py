"""Which tile a sparse convolution takes, and how its weights lie."""

import re
from dataclasses import replace

import pytest
import torch

from lacuna_kernels import Precision
from lacuna_kernels.cuda.compiler import SOURCES
from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.precision import DTYPES, round_to_tf32
from lacuna_kernels.cuda.sparse_conv_choice import (
    FP32_TILES,
    MMA_TILES,
    PORTABLE,
    RESIDENT_TILES,
    TF32_TILES,
    WGMMA_TILES,
    ConvShape,
    candidates,
)
from lacuna_kernels.cuda.sparse_conv_hopper import ResidentTile, WgmmaTile
from lacuna_kernels.cuda.sparse_conv_tiles import Tf32Tile

WIDTHS = [(1, 1), (3, 5), (5, 19), (19, 96), (4, 32), (32, 32), (96, 96), (192, 128), (64, 33), (130, 257), (512, 512)]
HALF = torch.float16
H200 = DeviceLimits(132, 232_448, "sm_90")
NAMES = ("BARRIERS", "GATHERERS", "SLOTS")


@pytest.mark.parametrize("ci, co", WIDTHS)
@pytest.mark.parametrize("precision", Precision)
def test_portable_tiles_fit_every_gpu_and_waste_little(ci: int, co: int, precision: Precision):
    dtype = DTYPES[precision]
    tiles = candidates(ConvShape(ci, co, dtype, tf32=precision is Precision.TF32))

    for tile in tiles:
        variant = tile.variant(dtype, True)
        assert variant.dynamic_shared_bytes <= 99 * 1024  # what a block may have on every GPU since sm_80
        assert variant.architectures != ("sm_90a",)
    assert -(-co // tiles[0].n) * tiles[0].n < co + 32


@pytest.mark.parametrize(
    ("ci", "co", "rows", "single", "stride", "m", "n"),
    [
        (256, 256, 16384, False, 8, 128, 256),
        (256, 256, 8192, False, 8, 64, 128),
        (256, 256, 65536, False, 16, 128, 256),
        (256, 256, 65536, True, 16, 128, 256),
        (128, 128, 65536, False, 4, 64, 128),
        (128, 128, 131072, False, 4, 128, 128),
        (256, 128, 32768, True, 4, 64, 128),
        (96, 96, 131072, False, 1, 128, 96),
        (32, 64, 131072, False, 1, 64, 64),  # with a shortcut, or linear
        (32, 32, 131072, False, 1, 64, 32),
        (96, 19, 131072, True, 1, 64, 32),
    ],
)
def test_hopper_takes_what_was_measured_to_be_fastest(ci, co, rows, single, stride, m, n):
    tile = candidates(ConvShape(ci, co, HALF, aligned=True, rows=rows, single=single, stride=stride), H200)[0]

    assert isinstance(tile, WgmmaTile)
    assert (tile.m, tile.n) == (m, n)


@pytest.mark.parametrize("split, m", [(False, 64), (True, 128)])
def test_rows_of_parts_are_tiles_more(split, m):
    shape = ConvShape(128, 128, HALF, aligned=True, rows=65536, stride=8, split=split)

    assert candidates(shape, H200)[0].m == m


@pytest.mark.parametrize(
    "shape",
    [
        ConvShape(256, 256, HALF, rows=16384),
        ConvShape(24, 256, HALF, aligned=True, rows=16384),
        ConvShape(256, 256, torch.float32, aligned=True, rows=16384),
        ConvShape(256, 256, torch.float32, aligned=True, rows=16384, tf32=True),
    ],
    ids=["unaligned", "few channels in", "fp32", "tf32"],
)
def test_hopper_takes_a_portable_tile_otherwise(shape: ConvShape):
    assert candidates(shape, H200) == candidates(shape)


def test_smaller_gpus_have_wide_tiles_for_fewer_rows():
    shape = ConvShape(256, 256, HALF, aligned=True, rows=8192)

    assert candidates(shape, replace(H200, multiprocessors=78))[0].n == 256
    assert candidates(shape, H200)[0].n == 128


def test_every_source_for_hopper_alone_has_a_portable_one_beside_it():
    for shape in (ConvShape(256, 256, HALF, aligned=True, rows=rows, single=s) for rows in (1, 99999) for s in (0, 1)):
        hopper, *portable = candidates(shape, H200)
        assert hopper in WGMMA_TILES
        assert portable


def test_shared_memory_is_as_large_as_the_kernel_takes_it_to_be():
    source = (SOURCES / "sparse_conv_panels.cuh").read_text()
    barriers, gatherers, slots = (int(re.search(rf"{name} = (\d+)", source)[1]) for name in NAMES)

    for tile in WGMMA_TILES:
        stages = tile.stages * 2 * (tile.m + tile.n) * 64
        rows = tile.m + gatherers // 8 * 4  # those of a thread are followed by four words
        assert tile.variant(HALF, True).dynamic_shared_bytes == barriers + stages + slots * rows * 4
        blocks = 233_472 // (tile.variant(HALF, True).dynamic_shared_bytes + 1024)  # of an H200's multiprocessor
        assert blocks >= tile.blocks


@pytest.mark.parametrize(
    ("volume", "ci", "co", "k", "n"),
    [
        *((27, 4, 32, 16, 32), (27, 5, 16, 16, 16), (27, 24, 16, 32, 16), (27, 32, 64, 32, 64), (27, 64, 64, 64, 64)),
        *((8, 96, 96, 96, 96), (8, 128, 96, 128, 96), (1, 96, 19, 96, 32), (3, 128, 128, 128, 128)),
    ],
)
def test_weights_of_few_channels_or_offsets_stay(volume, ci, co, k, n):
    shape = ConvShape(ci, co, HALF, rows=1000, volume=volume, readable=True)

    found = [candidates(replace(shape, rows=rows), H200)[0] for rows in (1, 10**6)]

    assert isinstance(found[0], ResidentTile) and (found[0].k, found[0].n) == (k, n)
    assert found[0] is found[1]  # whose sums have an order of their own


@pytest.mark.parametrize(
    "change",
    [
        {"ci": 96},
        {"co": 96},
        {"dtype": torch.float32},
        {"readable": False},
        {"split": True},
        {"shortcut": 32},
        {"volume": 1},
        {"volume": 29},
        {"volume": 13, "ci": 96, "co": 96},
        {"volume": 1, "ci": 128, "co": 20},  # by 96 columns
    ],
    ids=str,
)
def test_other_weights_do_not(change):
    shape = ConvShape(64, 64, HALF, aligned=True, rows=1000, volume=28, readable=True)

    assert isinstance(candidates(shape, H200)[0], ResidentTile)
    assert not any(isinstance(tile, ResidentTile) for tile in candidates(replace(shape, **change), H200))
    assert not any(isinstance(tile, ResidentTile) for tile in candidates(shape, replace(H200, architecture="sm_80")))


def row_of_column(j: int, wide: int) -> int:
    """Of a panel, so that `wide` neighbours are a lane's: two of every eight rows are."""
    return j // (4 * wide) * 4 * wide + j % wide // 2 * 8 + j // wide % 4 * 2 + j % 2


@pytest.mark.parametrize("tile", RESIDENT_TILES, ids=str)
def test_weights_that_stay_lie_in_the_order_of_lanes(tile: ResidentTile):
    volume, ci, co = 3, tile.k - 3, tile.n - 1
    weight = torch.randn(volume, ci, co).half()
    panels = -(-tile.k // 32)

    packed = tile.pack(weight).view(volume, panels, tile.n, 4, 8)

    together, wide = min(tile.k, 32), min(8, tile.n // 4)
    for k, c, j in [(0, 0, 0), (1, ci - 1, co - 1), (2, 7, 5), (0, 9, 12)]:
        lane, part = c % together // (together // 4), c % (together // 4)  # who has read it, and which of its own it is
        product, half, neighbour = part // 4, part // 2 % 2, part % 2
        place = c // together * together % 32 + product * 16 + half * 8 + lane * 2 + neighbour
        row = row_of_column(j, wide)
        assert packed[k, c // 32, row, place // 8 ^ row // 2 % 4, place % 8] == weight[k, c, j]
    assert packed.sum(dtype=torch.float64) == weight.sum(dtype=torch.float64)


@pytest.mark.parametrize("shape", [(29, 64, 64), (27, 48, 64), (27, 65, 64), (27, 64, 65)], ids=str)
def test_a_weight_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match="28 offsets, 49 to 64 channels to at most 64, got"):
        ResidentTile(64, 64, 2, 4).pack(torch.zeros(shape))


@pytest.mark.parametrize("tile", RESIDENT_TILES, ids=str)
def test_weights_that_stay_have_a_block_a_multiprocessor(tile):
    assert [tile.grid(10**6, likely, tile.n, 1, 132) for likely in (1, 6400, 10**6)] == [1, 100, 132]
    assert tile.grid(64, 10**6, tile.n, 1, 132) == 1
    assert tile.variant(HALF, True).dynamic_shared_bytes <= 232_448
    for aligned, split in ((False, False), (True, True)):
        with pytest.raises(ValueError, match="pieces of"):
            tile.variant(HALF, aligned, split)


@pytest.mark.parametrize("tile", WGMMA_TILES, ids=str)
def test_weights_of_hopper_are_swizzled_by_64_bytes_and_a_lanes_columns_are_neighbours(tile: WgmmaTile):
    volume, ci, co = 2, 70, tile.n + 3
    weight = torch.randn(volume, ci, co).half()

    packed = tile.pack(weight).view(volume, 3, 2, tile.n, 4, 8)

    for k, c, j in [(0, 0, 0), (1, 69, co - 1), (1, 17, 5), (0, 63, tile.n - 1), (1, 40, 14)]:
        row, channel = row_of_column(j % tile.n, 8), c % 32
        assert packed[k, c // 32, j // tile.n, row, channel // 8 ^ row // 2 % 4, channel % 8] == weight[k, c, j]
    assert packed.sum(dtype=torch.float64) == weight.sum(dtype=torch.float64)


@pytest.mark.parametrize("tile", MMA_TILES, ids=str)
def test_other_weights_are_padded_with_zeros(tile):
    weight = torch.ones(2, 5, 7)

    packed = tile.pack(weight).view(2, tile.k, tile.n)

    assert torch.equal(packed[:, :5, :7], weight)
    assert packed.sum() == weight.sum()


@pytest.mark.parametrize("tile", [*FP32_TILES, *TF32_TILES], ids=str)
def test_weights_in_tf32_lie_as_lanes_multiply_by_them(tile: Tf32Tile):
    weight = torch.randn(2, 70, tile.n + 3)
    expected = round_to_tf32(weight) if tile.products == 1 else weight

    packed = tile.pack(weight).view(2, -1, 2, tile.k // 8, tile.n // 16, 8, 4, 2, 2)

    for k, c, j in [(0, 0, 0), (1, 69, tile.n + 2), (1, 17, 5), (0, 63, tile.n - 1)]:
        step, column = c % tile.k, j % tile.n
        place = (step // 8, column // 16, column % 8, step % 4, column % 16 // 8, step % 8 // 4)
        assert packed[k, c // tile.k, j // tile.n][place] == expected[k, c, j]
    assert packed.sum(dtype=torch.float64) == pytest.approx(float(expected.sum(dtype=torch.float64)), abs=1e-9)


def test_what_adds_up_otherwise_does_not_compete():
    def products(precision: Precision) -> set[int | None]:
        return {tile.products if isinstance(tile, Tf32Tile) else None for tile in PORTABLE[precision]}

    assert products(Precision.FP32) == {3}
    assert products(Precision.TF32) == {1}
    assert products(Precision.FP16) == products(Precision.BF16) == {None}


@pytest.mark.parametrize("tile", [*MMA_TILES, *FP32_TILES, *TF32_TILES], ids=str)
def test_a_portable_launch_has_a_block_for_each_tile_of_each_part(tile):
    assert tile.grid(1, 1, 1, 3, 132) == 3
    assert tile.grid(tile.m + 1, 1, tile.n, 3, 132) == 6
    assert tile.grid(tile.m, 1, tile.n + 1, 1, 132) == 2


@pytest.mark.parametrize("tile", WGMMA_TILES, ids=str)
def test_a_launch_on_hopper_has_about_as_many_blocks_as_there_are_likely_to_be_tiles(tile):
    assert tile.grid(10**6, 10 * tile.m, tile.n, 1, 132) == 10
    assert tile.grid(10**6, 10 * tile.m, tile.n, 3, 132) == 15
    assert tile.grid(2 * tile.m, 10 * tile.m, tile.n + 1, 1, 132) == 4


@pytest.mark.parametrize("tile", [*WGMMA_TILES, *MMA_TILES, *TF32_TILES], ids=str)
@pytest.mark.parametrize("split", [False, True])
def test_only_early_kernels_are_launched_beside_the_one_before(tile, split):
    dtype = torch.float32 if tile in TF32_TILES else HALF

    assert (tile.variant(dtype, True, split).cluster is not None) is tile.early
