"""Joules of a launch, from the GPU's own counter."""

import time
from collections.abc import Callable
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

        run     enqueues `launches` launches without waiting, in about run_ms on the device
        """
        times = max(2, round(1e3 * SECONDS / run_ms))
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        ticks = _Ticks(self.millijoules)
        start.record()
        for _ in range(times):
            run()
            ticks.look()  # here too: when the queue is full, enqueueing waits for the device
        end.record()
        while not end.query():  # type: ignore[no-untyped-call]
            ticks.look()
            time.sleep(_LOOK_SECONDS)
        (t0, e0), (t1, e1) = ticks.ends()
        watts = (e1 - e0) / 1e3 / (t1 - t0)
        ms = start.elapsed_time(end) / (times * launches)
        return Energy(watts * ms / 1e3, watts, ms)


class _Ticks:
    """When the counter moved, and to what, after the power has settled."""

    def __init__(self, millijoules: Callable[[], int]) -> None:
        self._millijoules = millijoules
        self._begin = self._looked = time.perf_counter()
        self._last = millijoules()
        self._found: list[tuple[float, int]] = []

    def look(self) -> None:
        """Read the counter, but not more often than pays."""
        if time.perf_counter() - self._looked < _LOOK_SECONDS:
            return
        last, self._last = self._last, self._millijoules()
        self._looked = time.perf_counter()  # after the reading, which takes milliseconds on some hosts
        if self._last != last and self._looked - self._begin > _SETTLE_SECONDS:
            self._found.append((self._looked, self._last))

    def ends(self) -> tuple[tuple[float, int], tuple[float, int]]:
        """The first tick and the last."""
        if len(self._found) < 2:
            raise RuntimeError(f"the energy counter moved {len(self._found)} times in {SECONDS} s")
        return self._found[0], self._found[-1]
