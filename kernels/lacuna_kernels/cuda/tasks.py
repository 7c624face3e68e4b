"""Tasks: launches that may be made beside those of others, what they read and what they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from lacuna_kernels.cuda.arena import BufferSpec
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.steps import Buffers, Run, Work, ints

WORK = "work"
"""Name of the buffer int32 that the tasks of a lane have to work with."""


@dataclass(frozen=True, slots=True)
class Task:
    """Launches of a step that may be made beside those of others, what they read and what they make.

    work  numbers of int32 that they need in the buffer `WORK`, if they are in a lane
    """

    reads: Sequence[str]
    makes: Mapping[str, BufferSpec]
    run: Run
    work: int = 0


def at_once(device: Device, tasks: Sequence[Task]) -> Work:
    """Tasks that do not depend on one another, side by side."""
    some = [task for task in tasks if task.makes]
    return Work(read_by(some), made_by(some), lambda b: device.at_once([partial(task.run, b) for task in some]))


def made_by(tasks: Sequence[Task]) -> dict[str, BufferSpec]:
    """What tasks make."""
    return {key: spec for task in tasks for key, spec in task.makes.items()}


def read_by(tasks: Sequence[Task]) -> list[str]:
    """What tasks read that none of them makes."""
    made = made_by(tasks)
    return [key for key in dict.fromkeys(key for task in tasks for key in task.reads) if key not in made]


def in_lanes(tasks: Sequence[Task], names: Sequence[str]) -> list[Task]:
    """Deal tasks out to lanes, one after another in each, which have one piece of memory to work with; none is empty.

    The longest come first, each to the lane that has the least to do.
    """
    lanes: list[list[Task]] = [[] for _ in names]
    for task in sorted(tasks, key=lambda task: -task.work):
        min(lanes, key=lambda lane: sum(other.work for other in lane)).append(task)
    return [_lane(lane, f"{name}:work") for lane, name in zip(lanes, names, strict=True) if lane]


def _lane(tasks: Sequence[Task], work: str) -> Task:
    length = max(1, *(task.work for task in tasks))

    def run(b: Buffers) -> None:
        for task in tasks:
            task.run({**b, WORK: b[work][: task.work]})

    return Task([key for task in tasks for key in task.reads], made_by(tasks) | {work: ints(length)}, run)
