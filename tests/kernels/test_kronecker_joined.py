"""Factors with a small d as if d were 1, and the 2:4 sparsity of their blocks, without a GPU."""

import pytest
import torch

from lacuna_kernels import Precision
from lacuna_kernels.cuda.kronecker import semi_structured
from lacuna_kernels.cuda.kronecker.choose import WAYS, candidates
from lacuna_kernels.cuda.kronecker.joined import Joined, joined, joined_block
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.way import Sums
from lacuna_kernels.ops.kronecker_linear import KSPattern, ks_matmul
from tests.kernels.factors import H200

DEPTHS = (2, 3, 4, 6)


@pytest.mark.parametrize("d", [2, 3, 5])
def test_a_joined_block_is_the_matrix_of_the_factor(d: int) -> None:
    values, x = torch.randn(1, 6, 8, d, dtype=torch.float64), torch.randn(7, 8 * d, dtype=torch.float64)

    assert torch.allclose(x @ joined_block(values[0]).T, ks_matmul(x, values))


@pytest.mark.parametrize("d", DEPTHS)
def test_of_every_four_neighbours_of_a_row_two_are_kept_and_the_others_are_zero(d: int) -> None:
    a, b, c = 2, 40, 24
    values = torch.arange(1.0, a * b * c * d + 1, dtype=torch.float64).view(a, b, c, d)

    packed = semi_structured.WAYS[0].pack(values)

    blocks, steps = len(packed) // a, packed.shape[1]
    rows, columns = blocks * 64, steps * 64
    # i block step eight row element | places
    kept = packed.view(a, blocks, steps, 4, 64, 8).permute(0, 1, 4, 2, 3, 5).reshape(a, rows, -1, 2)
    places = semi_structured._places(rows, columns, d)
    assert bool((places[..., 0] < places[..., 1]).all())
    for i in range(a):
        whole = torch.zeros(rows, columns // 4, 4, dtype=values.dtype).scatter(2, places, kept[i]).view(rows, columns)
        assert torch.equal(whole[: b * d, : c * d], joined_block(values[i]))
        assert int(whole.count_nonzero()) == b * c * d


@pytest.mark.parametrize("d", DEPTHS)
def test_places_are_alike_64_rows_on_64_columns_back_and_after_96(d: int) -> None:
    places = semi_structured._places(192, 384, d)

    assert torch.equal(places[64:, 16:], places[:-64, :-16])
    assert torch.equal(places[:, 24:], places[:, :-24])


def test_16_bits_with_a_small_d_go_by_sparse_tensor_cores_and_tf32_joined() -> None:
    for pattern in ((24, 96, 96, 2), (3, 96, 384, 3)):
        problem = Problem(KSPattern(*pattern), 25_088, Precision.BF16)
        assert candidates(problem, H200)[0].name.startswith("semi-structured")
    problem = Problem(KSPattern(24, 64, 64, 2), 25_088, Precision.TF32)
    assert candidates(problem, H200)[0].name.startswith("joined")


def test_each_is_for_a_small_d_batch_size_first() -> None:
    for way in semi_structured.WAYS:
        fitting = Problem(KSPattern(2, 64, 64, 2), 100, Precision.FP16)
        assert way.fits(fitting, H200)
        assert way.sums(fitting) is Sums.MMA
        for other in (
            Problem(fitting.pattern, 100, Precision.FP32),
            Problem(fitting.pattern, 100, Precision.FP16, Layout.LAST),
            Problem(fitting.pattern, 100, Precision.FP16, aligned=False),
            Problem(KSPattern(2, 64, 64, 5), 100, Precision.FP16),
            Problem(KSPattern(2, 63, 64, 2), 100, Precision.FP16),
        ):
            assert not way.fits(other, H200)
    ways = [way for way in WAYS if isinstance(way, Joined)]
    wide = Problem(KSPattern(2, 64, 64, 5), 100, Precision.TF32)
    assert joined(wide).pattern == KSPattern(2, 320, 320, 1)
    assert sum(way.fits(wide, H200) for way in ways) >= 3
    for way in ways:
        assert not way.fits(Problem(wide.pattern, 100, Precision.FP32), H200)
        assert not way.fits(Problem(KSPattern(2, 4, 64, 5), 100, Precision.TF32), H200)
        assert not way.fits(Problem(KSPattern(2, 64, 64, 1), 100, Precision.TF32), H200)
        assert not way.fits(Problem(KSPattern(2, 1024, 1024, 64), 100, Precision.TF32), H200)
