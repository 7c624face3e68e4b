"""How long a launch takes on a GPU: events, medians, graphs for short ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil, inf
from statistics import median

import torch

ROTATE_BYTES = 2**28
"""Operands that are gone through between two uses of the same ones: several times a second-level cache."""

Launch = Callable[[int], object]
"""Enqueues one run on the operands of a copy; copies are numbered from 0."""

_GRAPH_BELOW_MS, _GRAPH_MS = 25.0, 0.4
_ENOUGH_MS = 12.0
_SURE_MS = 1.0  # what takes longer is measured well enough by one run


def copies_of(operand_bytes: int, most: int = 1024) -> int:
    """How many copies of the operands to walk through, so that nothing is found in the cache by luck.

    Under 64 KB, `most` is not enough for that.
    """
    return min(most, max(2, ceil(ROTATE_BYTES / max(operand_bytes, 1))))


def milliseconds(launch: Launch, copies: int = 1, most: int = 7, *, hopeless_ms: float = inf) -> float:
    """Median time of one launch on the current stream, which must not be the default one; it has run before.

    Launches of up to 25 ms are captured in a graph that walks through the copies, so that the host is not what is
    measured; longer ones run one by one. At least 3 runs of each copy are timed, or 3 in all of long ones, and up to
    `most` while they are short. One that takes over 1 ms and over hopeless_ms is timed once.
    """
    estimate = elapsed_ms(lambda: launch(copies - 1))
    if estimate > max(hopeless_ms, _SURE_MS):
        return estimate
    if estimate < _GRAPH_BELOW_MS:
        return _by_graph(launch, copies, most, estimate)
    times = [elapsed_ms(partial(launch, index % copies)) for index in range(_repeats(estimate, most) - 1)]
    return median([estimate, *times])


def _by_graph(launch: Launch, copies: int, most: int, estimate_ms: float) -> float:
    rounds = max(1, ceil(_GRAPH_MS / max(estimate_ms * copies, 1e-3)))
    launches = copies * rounds
    with captured(launch, copies, rounds) as replay:
        if estimate_ms < _SURE_MS:
            replay()
        return median(elapsed_ms(replay) for _ in range(_repeats(estimate_ms * launches, most))) / launches


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
