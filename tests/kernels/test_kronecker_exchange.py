"""How factors are cut up for teams of blocks that exchange rows, without a GPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna_kernels import Precision
from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.kronecker import exchange, exchange_halves
from lacuna_kernels.cuda.kronecker.fp16_halves import halves_of
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.team_schedule import schedule_of
from lacuna_kernels.ops.kronecker_linear import KSPattern
from tests.kernels.factors import H200

WAYS = (*exchange.WAYS, *exchange_halves.WAYS)
side = st.integers(1, 140).map(lambda eighths: 8 * eighths) | st.integers(1, 1200)
patterns = st.builds(
    KSPattern, st.integers(1, 300), side, side, st.sampled_from([2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 128])
)
PRECISIONS = {0: Precision.BF16, 1: Precision.TF32, 2: Precision.FP32}
"""By how many halves of a value the teams have."""


def depth(way):
    return way.teams.depth if way.teams.whole else 40


def values(pattern):
    count = pattern.nonzeros
    return torch.arange(1, count + 1, dtype=torch.float64).view(pattern.values)


@settings(deadline=None)
@given(patterns, st.integers(0, 10**6), st.sampled_from(Precision))
def test_stages_fit_shared_memory_and_teams_are_not_more_than_run_at_once(pattern, rows, precision):
    problem = Problem(pattern, rows, precision)
    for way in (way for way in WAYS if way.fits(problem, H200)):
        teams = way.teams
        schedule = schedule_of(teams, pattern, rows, H200.multiprocessors)
        assert schedule is not None
        stages = schedule.stages
        used = stages.raw * teams.raw_bytes + stages.x * teams.plane_bytes
        used += stages.w * teams.weight_bytes + stages.y * teams.y_bytes

        assert used <= 225 * 1024
        assert min(stages.raw, stages.x, stages.y) >= 2
        assert stages.w >= 2 or schedule.resident
        assert max(stages.raw, stages.x, stages.w) <= 36
        assert stages.y <= 8
        assert stages.raw % teams.crews == 0 == stages.x % teams.crews
        assert teams.times(pattern, stages) in (1, teams.passes(pattern))
        assert teams.chunks(pattern) % schedule.together == 0
        assert schedule.teams % schedule.together == 0 or not (schedule.resident or teams.whole)
        assert schedule.together <= schedule.teams <= H200.multiprocessors // teams.blocks
        assert way.seconds(problem, H200) > 0


@pytest.mark.parametrize("way", exchange.WAYS, ids=lambda way: way.name)
def test_every_value_is_packed_once_and_the_rest_is_zero(way):
    given = values(KSPattern(2, 72, 40, depth(way)))

    packed = way.pack(given)

    assert torch.equal(packed[packed != 0].sort().values, given.flatten())
    assert packed.numel() * 2 % way.teams.weight_bytes == 0


@pytest.mark.parametrize("way", exchange_halves.WAYS, ids=lambda way: f"{way.name} {way.teams.halves}")
def test_every_half_and_scale_is_packed_once_and_the_rest_is_zero(way):
    given = torch.rand(2, 72, 40, depth(way)) + 0.1
    halves, scales = halves_of(given, way.teams.halves)

    packed = way.pack(given)

    pattern, teams = KSPattern(*given.shape), way.teams
    stages = teams.chunks(pattern) * teams.blocks * teams.passes(pattern) * teams.k_stages(pattern)
    weights, rest = packed[: stages * teams.packed_bytes], packed[stages * teams.packed_bytes :]
    for part, expected in ((weights.view(torch.float16), halves), (rest.view(torch.float32), scales)):
        assert torch.equal(part[part != 0].sort().values, expected[expected != 0].sort().values)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.name} {way.teams.halves}")
def test_exchanges_are_for_aligned_rows_and_whole_vectors_on_hopper(way):
    precision = PRECISIONS[way.teams.halves]
    fitting = Problem(KSPattern(1, 128, 128, way.teams.depth), 100, precision)

    assert way.fits(fitting, H200)
    assert not way.fits(fitting, DeviceLimits(132, 232_448, "sm_80"))
    assert not way.fits(Problem(fitting.pattern, 100, precision, Layout.LAST), H200)
    assert not way.fits(Problem(fitting.pattern, 100, precision, aligned=False), H200)
    assert not way.fits(Problem(KSPattern(1, 128, 128, 1), 100, precision), H200)
    for b in (129, 130, 132):
        whole = b % way.teams.columns_together == 0
        assert way.fits(Problem(KSPattern(1, b, 128, way.teams.depth), 100, precision), H200) is whole
    for halves, other in PRECISIONS.items():
        assert way.fits(Problem(fitting.pattern, 100, other), H200) is (halves == way.teams.halves)
