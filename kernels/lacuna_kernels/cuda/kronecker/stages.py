"""Which stages a kernel has in shared memory: those that are waited for least."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar


class Stages(Protocol):
    """What all kinds have."""

    @property
    def raw(self) -> int:
        """Of x as it comes."""
        ...

    @property
    def x(self) -> int:
        """Of its planes."""
        ...

    @property
    def w(self) -> int:
        """Of weights."""
        ...


S = TypeVar("S", bound=Stages)


def fewest_waits(options: Iterable[S], waits: Callable[[S], float]) -> S | None:
    """The best of the options, of equals that with most weights, then planes; None if there are none."""
    return min(options, key=lambda stages: (waits(stages), -stages.w, -stages.x, -stages.raw), default=None)
