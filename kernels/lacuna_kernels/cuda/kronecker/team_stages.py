"""What teams of blocks fit, and which stages they have in shared memory: those with the fewest waits."""

from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import product
from math import ceil

from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.stages import Stages, fewest_waits
from lacuna_kernels.cuda.kronecker.teams import ROWS, SHARED_BYTES, Teams
from lacuna_kernels.cuda.kronecker.way import LARGEST_TILES
from lacuna_kernels.ops.kronecker_linear import KSPattern

_BARRIERS_BYTES = 2048
_MOST_STAGES = 36


def fits(teams: Teams, problem: Problem, limits: DeviceLimits) -> bool:
    """Of their depth; aligned rows of whole pieces, b of as many j as are written together, on Hopper."""
    p = problem.pattern
    return (
        limits.hopper
        and limits.shared_bytes >= SHARED_BYTES
        and problem.layout is Layout.FIRST
        and problem.aligned
        and (p.d == teams.depth if teams.whole else p.d >= teams.depth)
        and p.b % teams.columns_together == 0
        and teams.boxes.fits(p, p.c)
        and ceil(problem.rows / ROWS) * teams.chunks(p) < LARGEST_TILES
        and stages_of(teams, p) is not None
    )


@lru_cache(maxsize=4096)
def stages_of(teams: Teams, pattern: KSPattern) -> Stages | None:
    """Of all that there is room for, those with the fewest waits; None if none fit."""
    waits = _waits_of_halves if teams.halves else _waits
    return fewest_waits(_options(teams, pattern), partial(waits, teams, pattern))


def _options(teams: Teams, pattern: KSPattern) -> Iterator[Stages]:
    """Ways to fill the shared memory: weights have what the others leave."""
    whole, every = teams.k_stages(pattern), teams.k_stages(pattern) * teams.passes(pattern)
    kept = {whole, whole + 1, ceil(1.25 * whole), ceil(1.5 * whole), 2 * whole} if every > whole else {2, 3, 6, 8}
    for x, raw, y in product({4, *kept}, (2, 3, 4), (2, 3, 4, 6, 8) if teams.halves else (2, 3, 4)):
        if x < 2 or x % teams.crews or raw % teams.crews:  # a stage is one crew's: see take_apart
            continue
        left = SHARED_BYTES - _BARRIERS_BYTES - raw * teams.raw_bytes - x * teams.plane_bytes - y * teams.y_bytes
        w = min(left // teams.weight_bytes, every, _MOST_STAGES)
        if w >= min(2, every) and x <= _MOST_STAGES:
            yield Stages(raw, x, w, y)


def _waits(teams: Teams, pattern: KSPattern, stages: Stages) -> float:
    """About what share of the time is lost by so few stages, in 16 bits: fitted to runs of an H200.

    x that comes again for every pass counts by what it brings beside the weights.
    """
    raw, x, w, y = stages.raw, stages.x, stages.w, stages.y
    whole, passes = teams.k_stages(pattern), teams.passes(pattern)
    lost = 0.0
    if w < whole * passes:
        lost += {2: 0.25, 3: 0.07}.get(w, 0.0) + (0.1 if whole * passes <= 8 else 0.0)
    if passes > 1 and x >= whole:  # planes are kept, and another tile's come meanwhile if there is room
        lost += 0.02 / passes * max(0.0, 3 - 2 * x / whole) + {2: 0.0, 3: 0.0, 4: 0.01}[raw] + 0.005 * (y == 2)
    else:
        lost += {2: 0.12, 3: 0.016, 4: 0.0}[raw] + {2: 0.014, 3: 0.004, 4: 0.0}[y]
        lost += {2: 0.14, 3: 0.02}.get(x, 0.0) + _again(teams, passes)
    return lost


def _waits_of_halves(teams: Teams, pattern: KSPattern, stages: Stages) -> float:
    """The same in fp32 and tf32: more than three stages of weights, and four of planes, were seen to be slower."""
    raw, x, w, y = stages.raw, stages.x, stages.w, stages.y
    whole, passes = teams.k_stages(pattern), teams.passes(pattern)
    lost = {2: 0.08, 3: 0.03, 4: 0.01}.get(y, 0.0)
    if w < whole * passes:
        lost += {2: 0.03, 3: 0.0}.get(w, min(0.01 * (w - 3), 0.05))
    if passes > 1 and x >= whole:
        return lost + {2: 0.02, 3: 0.01, 4: 0.0}[raw] + 0.02 / passes * max(0.0, 3 - 2 * x / whole)
    lost += {2: 0.08, 3: 0.02, 4: 0.0}[raw] + {2: 0.2, 3: 0.04, 4: 0.0}.get(x, 0.03)
    return lost + _again(teams, passes)


def _again(teams: Teams, passes: int) -> float:
    """What is lost as x comes again for every pass."""
    return 0.1 * max(1.0, (passes - 1) * ROWS / teams.pass_columns) if passes > 1 else 0.0
