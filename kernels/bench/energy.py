"""Joules of a launch, from the GPU's own counter."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pynvml
import torch

SECONDS = 2.2
"""How long the device is kept busy; the counter moves some ten times a second."""
_SETTLE_SECONDS, _LOOK_SECONDS = 0.15, 0.01


@dataclass(frozen=True, slots=True)
class Energy:
    """What one launch takes when the device does nothing else."""

    joules: float
    watts: float
    ms: float


class Meter:
    """The energy counter of a GPU, found by its UUID; raises pynvml.NVMLError if it has none."""

    def __init__(self) -> None:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self.millijoules()

    def millijoules(self) -> int:
        """Read the counter."""
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def measure(self, run: Callable[[], object], launches: int, run_ms: float) -> Energy:
        """Run over and over for SECONDS; power is what the counter says between its first and last tick meanwhile.

        run     enqueues `launches` launches, in about run_ms on the device; it may wait for those before
        """
        times = max(2, round(1e3 * SECONDS / run_ms))
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with watched(self.millijoules) as ticks:
            start.record()
            for _ in range(times):
                run()
            end.record()
            end.synchronize()
        (t0, e0), (t1, e1) = ticks.ends()
        watts = (e1 - e0) / 1e3 / (t1 - t0)
        ms = start.elapsed_time(end) / (times * launches)
        return Energy(watts * ms / 1e3, watts, ms)


class Ticks:
    """When the counter moved, and to what, after the power has settled."""

    def __init__(self, millijoules: Callable[[], int]) -> None:
        self._millijoules = millijoules
        self._begin = time.perf_counter()
        self._last = millijoules()
        self._found: list[tuple[float, int]] = []

    def look(self) -> None:
        """Read the counter."""
        last, self._last = self._last, self._millijoules()
        now = time.perf_counter()
        if self._last != last and now - self._begin > _SETTLE_SECONDS:
            self._found.append((now, self._last))

    def ends(self) -> tuple[tuple[float, int], tuple[float, int]]:
        """The first tick and the last."""
        if len(self._found) < 2:
            raise RuntimeError(f"the energy counter moved {len(self._found)} times in {SECONDS} s")
        return self._found[0], self._found[-1]


@contextmanager
def watched(millijoules: Callable[[], int]) -> Iterator[Ticks]:
    """The ticks of a counter while something runs, read by another thread, as that takes milliseconds on some hosts."""
    ticks, done = Ticks(millijoules), threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_SECONDS):
            ticks.look()

    with ThreadPoolExecutor(1, thread_name_prefix="energy") as pool:
        looking = pool.submit(look)
        try:
            yield ticks
        finally:
            done.set()
    looking.result()  # raises what a reading did
