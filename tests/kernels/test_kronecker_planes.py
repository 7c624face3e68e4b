"""How factors are cut up for planes, without a GPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna_kernels import Precision
from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.ops.kronecker_linear import KSPattern
from tests.kernels.factors import H200
from tests.kernels.test_kronecker_planes_gpu import CASES, MANY_CASES, WAYS

side = st.integers(1, 70).map(lambda eighths: 8 * eighths)
patterns = st.builds(KSPattern, st.integers(1, 300), side, side, st.sampled_from([2, 3, 4, 6, 8, 12, 16, 24, 32, 128]))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_way_is_tried_on_a_gpu_on_blocks_of_several_shapes_and_on_many_rows(way):
    assert len([pattern for tried, pattern in CASES if tried is way]) >= 5
    assert [pattern for tried, pattern in MANY_CASES if tried is way]


@settings(deadline=None)
@given(patterns, st.integers(1, 10**6))
def test_stages_fit_shared_memory_and_blocks_are_not_more_than_the_device_runs_at_once(pattern, rows):
    problem = Problem(pattern, rows, Precision.FP16)
    for way in (way for way in WAYS if way.fits(problem, H200)):
        schedule = way.schedule(pattern, rows, H200.multiprocessors)
        assert schedule is not None
        stages, planes = schedule.stages, -(-pattern.c // (16 * way.steps))
        used = (stages.raw + stages.x) * way.stage_bytes + stages.w * way.weight_bytes(pattern)

        assert used <= way.free_bytes
        assert min(stages.raw, stages.x, stages.w) >= 1
        assert max(stages.raw, stages.x, stages.w) <= 40
        assert pattern.b <= 64 or stages.x >= planes
        assert 1 <= schedule.blocks <= H200.multiprocessors
        assert way.chunks(pattern) % schedule.chunks_together == 0
        assert way.seconds(problem, H200) > 0


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_value_is_packed_once_and_the_rest_is_zero(way):
    d = way.depth if way.whole else 40
    values = torch.arange(1, 2 * 72 * 40 * d + 1, dtype=torch.float64).view(2, 72, 40, d)

    packed = way.pack(values)

    assert torch.equal(packed[packed != 0].sort().values, values.flatten())


def test_ways_of_equal_packing_pack_alike():
    values = torch.randn(2, 48, 32, 48)
    for way in WAYS:
        for other in (other for other in WAYS if other.packing == way.packing):
            mine = values[..., : way.depth] if way.whole or other.whole else values
            assert torch.equal(way.pack(mine), other.pack(mine))


def test_planes_are_for_aligned_rows_of_16_bits_on_hopper():
    fitting = Problem(KSPattern(1, 48, 48, 16), 100, Precision.BF16)
    way = WAYS[0]

    assert way.fits(fitting, H200)
    assert not way.fits(fitting, DeviceLimits(132, 232_448, "sm_80"))
    assert not way.fits(Problem(fitting.pattern, 100, Precision.FP32), H200)
    assert not way.fits(Problem(fitting.pattern, 100, Precision.BF16, Layout.LAST), H200)
    assert not way.fits(Problem(fitting.pattern, 100, Precision.BF16, aligned=False), H200)
    assert not way.fits(Problem(KSPattern(1, 48, 48, 1), 100, Precision.BF16), H200)
