"""Choosing a tile is a pure function: what it promises, without a GPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna_kernels.cuda.compiler import Compiler
from lacuna_kernels.cuda.kronecker_tiles import TILES, VARIANTS, DeviceLimits, Method, candidates, tensor_cores_pay
from lacuna_kernels.ops.kronecker_linear import KSPattern

H200 = DeviceLimits(multiprocessors=132, shared_bytes=232_448)
SMALL = DeviceLimits(multiprocessors=20, shared_bytes=101_376)  # such as sm_86, sm_89 and sm_120
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

entry = st.integers(1, 600)
patterns = st.builds(KSPattern, entry, entry, entry, entry)
dtypes = st.sampled_from(DTYPES)
limits = st.sampled_from([H200, SMALL])


@settings(deadline=None)
@given(patterns, dtypes, st.integers(0, 2**31 - 1), limits)
def test_there_is_a_tile_for_every_pattern_and_any_number_of_rows(pattern, dtype, rows, limits):
    found = candidates(pattern, dtype, rows, limits)

    assert found
    assert all(tile in TILES[dtype] and tile.shared_bytes <= limits.shared_bytes for tile in found)
    assert len(set(found)) == len(found)


@settings(deadline=None)
@given(patterns, dtypes, st.integers(0, 10_000), st.integers(0, 10_000))
def test_neither_rows_nor_device_change_whether_tensor_cores_are_used(pattern, dtype, rows, others):
    found = candidates(pattern, dtype, rows, H200) + candidates(pattern, dtype, others, SMALL)

    assert len({tile.method is Method.MMA for tile in found}) == 1


@settings(deadline=None)
@given(patterns, st.integers(1, 10_000))
def test_fp32_never_meets_the_tensor_cores(pattern, rows):
    assert all(tile.method is not Method.MMA for tile in candidates(pattern, torch.float32, rows, H200))


@settings(deadline=None)
@given(patterns, dtypes, st.integers(0, 100_000))
def test_the_blocks_of_a_tile_cover_y(pattern, dtype, rows):
    for tile in candidates(pattern, dtype, rows, H200):
        made = tile.blocks(pattern, rows) * tile.n * tile.b * tile.d
        made *= tile.threads if tile.method is Method.COLUMNS else 1
        assert made >= rows * pattern.width_out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_butterflies_are_made_column_by_column(dtype):
    for exponent in range(12):
        pattern = KSPattern(2 ** (11 - exponent), 2, 2, 2**exponent)
        assert candidates(pattern, dtype, 25_088, H200)[0].method is Method.COLUMNS


@pytest.mark.parametrize(
    "pattern",
    [KSPattern(1, 48, 48, 128), KSPattern(4, 192, 48, 16), KSPattern(16, 128, 128, 4), KSPattern(64, 64, 64, 1)],
    ids=str,
)
def test_wide_blocks_are_made_in_tiles_as_deep_as_d_allows(pattern):
    half, single = (candidates(pattern, dtype, 25_088, H200)[0] for dtype in (torch.float16, torch.float32))

    assert half.method is Method.MMA
    assert half.d == min(pattern.d, 8)
    assert single.method is Method.SIMT


def test_few_rows_get_a_low_tile():
    pattern = KSPattern(64, 64, 64, 1)

    assert candidates(pattern, torch.float16, 16, H200)[0].n == 16
    assert candidates(pattern, torch.float16, 25_088, H200)[0].n > 16


def test_tensor_cores_are_for_wide_blocks_of_16_bits():
    assert tensor_cores_pay(KSPattern(1, 16, 16, 1), torch.bfloat16)
    assert not tensor_cores_pay(KSPattern(1, 16, 16, 1), torch.float32)
    assert not tensor_cores_pay(KSPattern(64, 2, 512, 1), torch.float16)


def test_blocks_have_whole_warps_and_no_more_threads_than_a_gpu_allows():
    for tile in (tile for tiles in TILES.values() for tile in tiles):
        assert tile.threads % 32 == 0, tile
        assert tile.threads <= 1024, tile


def test_variants_name_sources_that_exist_and_are_all_different():
    assert len(set(VARIANTS)) == len(VARIANTS)
    assert all((Compiler().sources / variant.source).is_file() for variant in VARIANTS)
