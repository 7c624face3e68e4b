"""Tasks: launches that may be made beside those of others, what they read and what they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from lacuna_kernels.cuda.arena import BufferSpec
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.steps import Run, Work


@dataclass(frozen=True, slots=True)
class Task:
    """Launches of a step that may be made beside those of others, what they read and what they make."""

    reads: Sequence[str]
    makes: Mapping[str, BufferSpec]
    run: Run


def at_once(device: Device, tasks: Sequence[Task]) -> Work:
    """Tasks that do not depend on one another, side by side."""
    some = [task for task in tasks if task.makes]
    return Work(_read_by(some), _made_by(some), lambda b: device.at_once([partial(task.run, b) for task in some]))


def _made_by(tasks: Sequence[Task]) -> dict[str, BufferSpec]:
    """What tasks make."""
    return {key: spec for task in tasks for key, spec in task.makes.items()}


def _read_by(tasks: Sequence[Task]) -> list[str]:
    """What tasks read that none of them makes."""
    made = _made_by(tasks)
    return [key for key in dict.fromkeys(key for task in tasks for key in task.reads) if key not in made]
