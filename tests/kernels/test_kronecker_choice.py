"""Choosing a tile is a pure function: what it promises, without a GPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna_kernels import Precision
from lacuna_kernels.cuda.compiler import Compiler
from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.kronecker.chain import CHAIN_WAYS as TEAMS
from lacuna_kernels.cuda.kronecker.choose import VARIANTS, candidates, stages, sums_of
from lacuna_kernels.cuda.kronecker.halves import WAYS as HALVES_WAYS
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.tiles import WAYS as TILE_WAYS
from lacuna_kernels.cuda.kronecker.tiles import Method, Tile, tensor_cores_pay
from lacuna_kernels.cuda.kronecker.tma import WAYS as TMA_WAYS
from lacuna_kernels.cuda.kronecker.way import Sums
from lacuna_kernels.errors import Unsupported
from lacuna_kernels.ops.kronecker_linear import KSPattern
from tests.kernels.factors import H200

SMALL = DeviceLimits(multiprocessors=20, shared_bytes=101_376)  # such as sm_86, sm_89 and sm_120

entry = st.integers(1, 600)
patterns = st.builds(KSPattern, entry, entry, entry, entry)
precisions = st.sampled_from(Precision)
layouts = st.sampled_from(Layout)
limits = st.sampled_from([H200, SMALL])


def tiles_for(problem: Problem, limits: DeviceLimits) -> list[Tile]:
    """The plain tiles, best guess first, as if there were nothing else."""
    fits = [tile for tile in TILE_WAYS if tile.fits(problem, limits)]
    return sorted(fits, key=lambda tile: tile.seconds(problem, limits))


@settings(deadline=None)
@given(patterns, precisions, layouts, st.integers(0, 2**31 - 1), limits, st.booleans())
def test_there_is_a_way_for_every_pattern_any_number_of_rows_and_any_alignment(
    pattern, precision, layout, rows, limits, aligned
):
    problem = Problem(pattern, rows, precision, layout, aligned)

    found = candidates(problem, limits)

    assert found
    assert all(way.fits(problem, limits) for way in found)
    assert len({way.name for way in found}) == len(found)


@settings(deadline=None)
@given(patterns, precisions, layouts, st.integers(0, 10_000), st.integers(0, 10_000), limits)
def test_the_number_of_rows_does_not_change_how_products_are_added_up(pattern, precision, layout, rows, others, limits):
    problems = [Problem(pattern, number, precision, layout, counted=True) for number in (rows, others)]

    assert len({way.sums(problem) for problem in problems for way in candidates(problem, limits)}) == 1


@settings(deadline=None)
@given(patterns, layouts, st.integers(1, 10_000), limits)
def test_fp32_is_never_rounded_to_fewer_bits(pattern, layout, rows, limits):
    problem = Problem(pattern, rows, Precision.FP32, layout)

    assert sums_of(problem, limits) in (Sums.FMA, Sums.SPLIT, Sums.HALVES, Sums.HALVES_OF_32)


@settings(deadline=None)
@given(patterns, precisions, st.integers(0, 100_000))
def test_the_blocks_of_a_tile_cover_y(pattern, precision, rows):
    for tile in tiles_for(Problem(pattern, rows, precision), H200):
        made = tile.blocks(pattern, rows) * tile.n * tile.b * tile.d
        made *= tile.threads if tile.method is Method.COLUMNS else 1
        assert made >= rows * pattern.width_out


def test_blocks_of_one_element_may_be_more_tiles_than_the_tensor_copies_count():
    few, many = (Problem(KSPattern(2**16, 1, 1, d), 1, Precision.FP16, Layout.LAST) for d in (2**13, 2**14))

    assert any(way.fits(few, H200) for way in TMA_WAYS)
    assert not any(way.fits(many, H200) for way in TMA_WAYS)
    assert candidates(many, H200)


def test_blocks_of_one_element_may_be_more_tiles_than_the_kernel_of_halves_counts():
    few, many = (Problem(KSPattern(2**14, 1, 1, d), 1, Precision.FP32) for d in (2**17, 2**21))

    assert any(way.fits(few, H200) for way in HALVES_WAYS)
    assert not any(way.fits(many, H200) for way in HALVES_WAYS)
    assert candidates(many, H200)


def test_entries_that_kernels_cannot_count_to_are_refused():
    with pytest.raises(Unsupported, match="entries must be under 1073741824"):
        candidates(Problem(KSPattern(1, 1, 2**30, 1), 1, Precision.FP32), H200)


@settings(deadline=None)
@given(st.lists(st.tuples(entry, entry, entry), min_size=1, max_size=5), precisions, st.integers(1, 30_000), limits)
def test_the_stages_of_a_chain_take_every_factor_once_in_order(entries, precision, rows, limits):
    problems = [Problem(KSPattern(a, b, b, d), rows, precision) for a, b, d in entries]

    found = stages(problems, limits)

    assert [problem for stage in found for problem in stage.problems] == problems
    assert [stage.first for stage in found] == [
        sum(len(before.problems) for before in found[:index]) for index in range(len(found))
    ]


@pytest.mark.parametrize("team", TEAMS, ids=lambda team: team.name)
def test_a_team_of_blocks_takes_its_own_patterns_alone_in_16_bits_batch_size_first_on_hopper(team):
    def fits(patterns: tuple[KSPattern, ...], *more: object, limits: DeviceLimits = H200) -> bool:
        return team.fits([Problem(pattern, 64, *more) for pattern in patterns], limits)

    mine = (team.first, team.second)

    assert fits(mine, Precision.FP16)
    assert fits(mine, Precision.BF16)
    assert not fits(mine[::-1], Precision.BF16)
    assert not fits(mine[:1], Precision.BF16)
    assert not fits(mine, Precision.FP32)
    assert not fits(mine, Precision.BF16, Layout.LAST)
    assert not fits(mine, Precision.BF16, Layout.FIRST, False)
    assert not fits(mine, Precision.BF16, limits=SMALL)


@pytest.mark.parametrize("precision", Precision, ids=str)
def test_butterflies_are_made_column_by_column(precision):
    for exponent in range(12):
        pattern = KSPattern(2 ** (11 - exponent), 2, 2, 2**exponent)
        assert candidates(Problem(pattern, 25_088, precision), H200)[0].name.startswith(Method.COLUMNS)


@pytest.mark.parametrize(
    "pattern",
    [KSPattern(1, 48, 48, 128), KSPattern(4, 192, 48, 16), KSPattern(16, 128, 128, 4), KSPattern(64, 64, 64, 1)],
    ids=str,
)
def test_wide_blocks_are_made_in_tiles_as_deep_as_d_allows(pattern):
    half, single = (tiles_for(Problem(pattern, 25_088, p), H200)[0] for p in (Precision.FP16, Precision.FP32))

    assert half.method is Method.MMA
    assert half.d == min(pattern.d, 8)
    assert single.method is Method.SIMT


def test_few_rows_get_a_low_tile():
    pattern = KSPattern(64, 64, 64, 1)

    assert tiles_for(Problem(pattern, 16, Precision.FP16), H200)[0].n == 16
    assert tiles_for(Problem(pattern, 25_088, Precision.FP16), H200)[0].n > 16


def test_tensor_cores_are_for_wide_blocks_of_16_bits():
    assert tensor_cores_pay(KSPattern(1, 16, 16, 1), torch.bfloat16)
    assert not tensor_cores_pay(KSPattern(1, 16, 16, 1), torch.float32)
    assert not tensor_cores_pay(KSPattern(64, 2, 512, 1), torch.float16)


def test_blocks_have_whole_warps_and_no_more_threads_than_a_gpu_allows():
    for tile in TILE_WAYS:
        assert tile.threads % 32 == 0, tile
        assert tile.threads <= 1024, tile


def test_variants_name_sources_that_exist_and_are_all_different():
    assert len(set(VARIANTS)) == len(VARIANTS)
    assert all((Compiler().sources / variant.source).is_file() for variant in VARIANTS)
