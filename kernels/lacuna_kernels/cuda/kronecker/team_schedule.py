"""How teams of blocks share the work of a launch, and how long that should take."""

from dataclasses import dataclass
from math import ceil, hypot

from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.stages import Stages
from lacuna_kernels.cuda.kronecker.teams import ROWS, Teams
from lacuna_kernels.ops.kronecker_linear import KSPattern

_CACHED_WEIGHT_BYTES = 16e6
"""That stay in the second-level cache beside x and y."""
_IDLE_TEAMS = {1: 0, 2: 0, 4: 3, 8: 1}
"""Clusters do not cross the borders of a GPU's parts: so many fewer than its multiprocessors would make run at once."""
_LINE = 64
"""Neighbouring l that lie in a line of memory."""
_APART = 1.5
"""How much longer it takes if those of a line are not read at the same time."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a launch is cut up.

    teams     that share the work
    together  neighbouring chunks that are done side by side, before the next ones
    resident  whether the stages of weights are all weights of a chunk
    """

    teams: int
    together: int
    stages: Stages
    resident: bool


def schedule_of(teams: Teams, pattern: KSPattern, rows: int, multiprocessors: int) -> Schedule | None:
    """The stages, and how to share the work so that the last team is done soonest; None if there is no room."""
    stages = teams.stages(pattern)
    if stages is None:
        return None
    tiles, chunks = max(1, ceil(rows / ROWS)), teams.chunks(pattern)
    most = max(1, multiprocessors // teams.blocks - _IDLE_TEAMS[teams.blocks])
    resident = stages.w == teams.k_stages(pattern) * teams.passes(pattern)
    stays = resident or teams.whole  # a team, with its chunk: then teams are a multiple of the chunks done together

    def busy(together: int) -> int:
        return min(most // together * together if stays else most, tiles * together)

    def rounds(together: int) -> float:
        lines = 1 if together * teams.depth >= min(_LINE, pattern.d) else _APART
        return lines * ceil(tiles * together / busy(together)) * (chunks // together)

    parts = [part for part in range(1, min(chunks, most) + 1) if chunks % part == 0]
    if stays:
        together = min(parts, key=lambda part: (rounds(part), -part))
    else:  # as few as give whole lines: their weights should stay in the second-level cache, or half a percent is lost
        together = min(parts, key=lambda part: (rounds(part) * (1 + part / 200), part))
    return Schedule(busy(together), together, stages, resident)


def seconds_of(teams: Teams, problem: Problem, limits: DeviceLimits) -> float:
    """What memory, the team, the second-level cache and each kind of thread take, which only partly overlap.

    Fitted to runs of an H200; rates are bytes a clock and block.
    """
    p = problem.pattern
    schedule = schedule_of(teams, p, problem.rows, limits.multiprocessors)
    assert schedule is not None
    tiles = ceil(problem.rows / ROWS) * teams.chunks(p)
    passes, k_stages = teams.passes(p), teams.k_stages(p)
    x, y = (ROWS * teams.own * teams.size * side for side in (p.c, p.b))
    x *= teams.times(p, schedule.stages)
    streamed = 0 if schedule.resident else passes * k_stages * teams.weight_bytes
    together = schedule.together * teams.depth * p.b * p.c * teams.weight_size  # bytes of weights
    past_cache = streamed * max(0.0, 1 - _CACHED_WEIGHT_BYTES / together)
    matrices = teams.own * teams.shares * teams.steps  # of 64 rows and of `columns`, by 16 k, in a stage
    clocks = hypot(
        (x + y + past_cache) / _memory_rate(teams, p.d),
        (x + y) * (1 - 1 / teams.blocks) / 24.0,
        (x + streamed) / 74.0,
        x / (0.28 * min(teams.takers, teams.units * teams.crews)),
        y / (6.7 * (7 - teams.takers // 32)),
        0.86 * passes * k_stages * matrices * max(teams.columns / 2, 16 + teams.columns / 4),
    )
    if schedule.stages.w == 2 and not schedule.resident:  # every copy is waited for
        clocks *= 1.25
    if teams.depth == 12:
        clocks *= 1.32
    if teams.own_rows == 8 and not teams.whole:
        clocks *= 1.07
    clocks += passes * (86 + 187 * k_stages + 5.7 * teams.sums)
    return 5e-6 + ceil(tiles / schedule.teams) * clocks / 1.7e9


def _memory_rate(teams: Teams, d: int) -> float:
    """As seen for the d of the grid: less where teams have parts of the same lines, and come by them at other times."""
    if teams.whole:
        return 40.1
    if teams.depth >= 32 or d in (16, 32):
        return 28.5
    return 25.8 if d == 48 else 10.6
