"""How long a launch takes on a GPU: events, medians, graphs for short ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil
from statistics import median

import torch

ROTATE_BYTES = 2**28
"""Operands that are gone through between two uses of the same ones: several times a second-level cache."""

Launch = Callable[[int], object]
"""Enqueues one run on the operands of a copy; copies are numbered from 0."""

_GRAPH_BELOW_MS = 5.0
_GRAPH_MS = 0.4
_ENOUGH_MS = 25.0


def copies_of(operand_bytes: int, most: int = 64) -> int:
    """How many copies of the operands to walk through, so that nothing is found in the cache by luck."""
    return min(most, max(2, ceil(ROTATE_BYTES / max(operand_bytes, 1))))


def milliseconds(launch: Launch, copies: int = 1, most: int = 7) -> float:
    """Median time of one launch on the current stream, which must not be the default one.

    Launches of up to 5 ms are captured in a graph that walks through the copies, so that the host is not what is
    measured; longer ones run one by one. At least 3 are timed, or 2 over 25 ms, and up to `most` while they are short;
    those before the first warm up.
    """
    launch(0)
    estimate = elapsed_ms(lambda: launch(copies - 1))
    if estimate < _GRAPH_BELOW_MS:
        rounds = max(1, ceil(_GRAPH_MS / max(estimate * copies, 1e-3)))
        launches = copies * rounds
        with captured(launch, copies, rounds) as replay:
            replay()
            return median(elapsed_ms(replay) for _ in range(_repeats(estimate * launches, most))) / launches
    more = _repeats(estimate, most) if estimate < _ENOUGH_MS else 1
    return median([estimate, *(elapsed_ms(partial(launch, index % copies)) for index in range(more))])


def _repeats(estimate_ms: float, most: int) -> int:
    return min(most, max(3, ceil(_ENOUGH_MS / estimate_ms)))


@contextmanager
def captured(launch: Launch, copies: int, rounds: int = 1) -> Iterator[Callable[[], None]]:
    """A graph of copies * rounds launches, to be replayed; its memory is given back at the end."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    graph.capture_begin()
    try:
        for index in range(copies * rounds):
            launch(index % copies)
    finally:
        graph.capture_end()
    try:
        yield graph.replay
    finally:
        torch.cuda.synchronize()
        graph.reset()


def elapsed_ms(work: Callable[[], object]) -> float:
    """Time between two events around some work on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
