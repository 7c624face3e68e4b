"""How long a launch by teams of blocks should take: what memory, the team, the cache and each kind of thread take.

They only partly overlap. Fitted to runs of an H200; rates are bytes a clock and block.
"""

from dataclasses import dataclass
from math import ceil, hypot

from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.team_schedule import Schedule, schedule_of
from lacuna_kernels.cuda.kronecker.teams import ROWS, Teams
from lacuna_kernels.ops.kronecker_linear import KSPattern

_CLOCKS_PER_SECOND = 1.7e9


@dataclass(frozen=True, slots=True)
class _Tile:
    """Bytes that a block moves for 64 rows: x and y of its l, weights that stream, and those that miss the cache."""

    x: float
    y: float
    streamed: float
    past_cache: float

    @classmethod
    def of(cls, teams: Teams, pattern: KSPattern, schedule: Schedule, cached_bytes: float) -> "_Tile":
        """`cached_bytes` of weights stay in the second-level cache beside x and y."""
        x, y = (ROWS * teams.own * teams.size * side for side in (pattern.c, pattern.b))
        passes, k_stages = teams.passes(pattern), teams.k_stages(pattern)
        streamed = 0 if schedule.resident else passes * k_stages * teams.weight_bytes
        together = schedule.together * teams.depth * pattern.b * pattern.c * teams.weight_size
        past_cache = streamed * max(0.0, 1 - cached_bytes / together)
        return cls(x * teams.times(pattern, schedule.stages), y, streamed, past_cache)


def seconds_of(teams: Teams, problem: Problem, limits: DeviceLimits) -> float:
    """A launch for a problem that the teams fit."""
    pattern = problem.pattern
    schedule = schedule_of(teams, pattern, problem.rows, limits.multiprocessors)
    assert schedule is not None
    clocks = (_clocks_of_halves if teams.halves else _clocks)(teams, pattern, schedule)
    tiles = ceil(problem.rows / ROWS) * teams.chunks(pattern)
    return 5e-6 + ceil(tiles / schedule.teams) * clocks / _CLOCKS_PER_SECOND


def _clocks(teams: Teams, p: KSPattern, schedule: Schedule) -> float:
    """Of a tile, in 16 bits."""
    tile = _Tile.of(teams, p, schedule, 16e6)
    passes, k_stages = teams.passes(p), teams.k_stages(p)
    matrices = teams.own * teams.shares * teams.steps  # of 64 rows and of `columns`, by 16 k, in a stage
    clocks = hypot(
        (tile.x + tile.y + tile.past_cache) / _memory_rate(teams, p.d),
        (tile.x + tile.y) * (1 - 1 / teams.blocks) / 24.0,
        (tile.x + tile.streamed) / 74.0,
        tile.x / (0.28 * _takers(teams)),
        tile.y / (6.7 * teams.writers),
        0.86 * passes * k_stages * matrices * max(teams.columns / 2, 16 + teams.columns / 4),
    )
    if schedule.stages.w == 2 and not schedule.resident:  # every copy is waited for
        clocks *= 1.25
    if k_stages == 2 and not schedule.resident:  # as measured; with two stages of weights, too
        clocks *= 1.12
    if teams.depth == 12:
        clocks *= 1.32
    if teams.own_rows == 8 and not teams.whole:
        clocks *= 1.07
    return clocks + passes * (86 + 187 * k_stages + 5.7 * teams.sums)


def _memory_rate(teams: Teams, d: int) -> float:
    """As seen for the d of the grid: less where teams have parts of the same lines, and come by them at other times."""
    if teams.whole:
        return 40.1
    if teams.depth >= 32 or d in (16, 32):
        return 28.5
    return 25.8 if d == 48 else 10.6


def _clocks_of_halves(teams: Teams, p: KSPattern, schedule: Schedule) -> float:
    """Of a tile, in fp32 and tf32: what partly overlaps, then products and what is done for every l of a stage."""
    tile = _Tile.of(teams, p, schedule, 14e6)
    both, passes = teams.halves == 2, teams.passes(p)
    additions = passes * teams.k_stages(p) * teams.own * teams.shares / teams.groups
    planes = tile.x if both else tile.x / 2
    taken, added, multiplied, finished = (0.212, 0.54, 1.735, 8.17) if both else (0.346, 1.09, 0.84, 4.44)
    clocks = hypot(
        (tile.x + tile.y + tile.past_cache) / _memory_rate_of_halves(teams, p.d),
        (planes + tile.y) * (1 - 1 / teams.blocks) / 21.7,
        (tile.x + tile.streamed) / 51.4,
        tile.x / (taken * _takers(teams)),
        tile.y / (5.44 * teams.writers),
    )
    return (
        clocks + additions * (74 + (added + multiplied * teams.steps) * teams.columns) + finished * passes * teams.sums
    )


def _memory_rate_of_halves(teams: Teams, d: int) -> float:
    """As seen for the d of the grid: teams that have parts of the same lines drift apart where there are many l."""
    if teams.whole:
        return 45.1
    if teams.depth >= 16:
        return 35.8 if d < 32 else 30.7
    return 25.8 if d < 32 else 14.0


def _takers(teams: Teams) -> int:
    return min(teams.takers, teams.units * teams.crews)
