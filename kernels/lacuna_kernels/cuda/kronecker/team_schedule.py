"""How teams of blocks share the work of a launch."""

from dataclasses import dataclass
from math import ceil

from lacuna_kernels.cuda.kronecker.stages import Stages
from lacuna_kernels.cuda.kronecker.team_stages import stages_of
from lacuna_kernels.cuda.kronecker.teams import ROWS, Teams
from lacuna_kernels.ops.kronecker_linear import KSPattern

_IDLE_TEAMS = {1: 0, 2: 0, 4: 3, 8: 1}
"""Clusters do not cross the borders of a GPU's parts: so many fewer than its multiprocessors would make run at once."""
_LINE_BYTES = 128
"""Of memory."""
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
    stages = stages_of(teams, pattern)
    if stages is None:
        return None
    tiles, chunks = max(1, ceil(rows / ROWS)), teams.chunks(pattern)
    most = max(1, multiprocessors // teams.blocks - _IDLE_TEAMS[teams.blocks])
    resident = stages.w == teams.k_stages(pattern) * teams.passes(pattern)
    stays = resident or teams.whole  # a team, with its chunk: then teams are a multiple of the chunks done together

    def busy(together: int) -> int:
        return min(most // together * together if stays else most, tiles * together)

    def rounds(together: int) -> float:
        lines = 1 if together * teams.depth >= min(_LINE_BYTES // teams.size, pattern.d) else _APART
        return lines * ceil(tiles * together / busy(together)) * (chunks // together)

    parts = [part for part in range(1, min(chunks, most) + 1) if chunks % part == 0]
    if stays:
        together = min(parts, key=lambda part: (rounds(part), -part))
    else:  # as few as give whole lines: their weights should stay in the second-level cache, or half a percent is lost
        together = min(parts, key=lambda part: (rounds(part) * (1 + part / 200), part))
    return Schedule(busy(together), together, stages, resident)
