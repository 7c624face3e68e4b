"""Which stages a kernel has in shared memory: those that are waited for least."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stages:
    """In shared memory: of x as it comes, of its planes, of weights, and of y if that has a number to choose."""

    raw: int
    x: int
    w: int
    y: int = 0


def fewest_waits(options: Iterable[Stages], waits: Callable[[Stages], float]) -> Stages | None:
    """The best of the options, of equals that with most weights, then planes; None if there are none."""
    return min(options, key=lambda stages: (waits(stages), -stages.w, -stages.x, -stages.raw), default=None)
