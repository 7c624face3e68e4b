"""Counters in device memory by which blocks share the tiles of a launch out among themselves: tile_counters.cuh."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import finalize

from lacuna_kernels.errors import DeviceError

COUNTERS = 1 << 16
"""How many there are for each kernel of a device."""


class TileCounter:
    """One of the counters, taken for as long as this lives."""

    def __init__(self, free: deque[int]) -> None:
        try:
            self.index = free.popleft()
        except IndexError:
            raise DeviceError(f"all {COUNTERS} counters of tiles are taken, two by every plan: unload models") from None
        finalize(self, free.append, self.index)


class TileCounters:
    """Which counter a launch has: two that may run at once have different ones, for else they would miss tiles.

    Launches of one stream run one after the other, and so do those of one captured graph. So a stream has a counter,
    and a graph that is not replayed on the stream that it was captured on has one of its own.
    """

    def __init__(self) -> None:
        self._free = deque(range(COUNTERS))
        self._of: dict[int, TileCounter] = {}

    def take(self) -> TileCounter:
        """Take one that is free; raises DeviceError."""
        return TileCounter(self._free)

    def of(self, stream: int) -> int:
        """Index of the counter of a launch on a stream."""
        if stream not in self._of:
            self._of[stream] = self.take()
        return self._of[stream].index

    @contextmanager
    def replaced(self, stream: int, counter: TileCounter) -> Iterator[None]:
        """Let launches on a stream have another counter than the stream's."""
        own = self._of.get(stream)
        self._of[stream] = counter
        try:
            yield
        finally:
            if own is None:
                del self._of[stream]
            else:
                self._of[stream] = own
