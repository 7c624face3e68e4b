"""How the kernels of teams of blocks are launched: exchange.cuh."""

from collections.abc import Sequence

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.team_schedule import schedule_of
from lacuna_kernels.cuda.kronecker.teams import Teams
from lacuna_kernels.cuda.kronecker.way import Operands, arguments
from lacuna_kernels.cuda.launch import Argument


def launch_teams(
    device: Device, teams: Teams, variant: Variant, problem: Problem, weights: Sequence[Argument], operands: Operands
) -> None:
    """Enqueue a problem that the teams fit; `weights` are the arguments that the kernel has for them."""
    if not problem.rows:
        return
    pattern = problem.pattern
    schedule = schedule_of(teams, pattern, problem.rows, device.limits.multiprocessors)
    assert schedule is not None
    device.kernel(variant)(
        (schedule.teams * teams.blocks, 1, 1),
        (teams.threads, 1, 1),
        teams.boxes.map(operands.x, pattern, pattern.c, teams.own_rows, teams.k),
        *weights,
        *arguments(problem, operands),
        schedule.stages.raw,
        schedule.stages.x,
        schedule.stages.w,
        schedule.stages.y,
        schedule.together,
    )
