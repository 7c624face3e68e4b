"""Joules of a launch, from the GPU's own counter."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import pynvml
import torch

SECONDS = 2.2
"""How long the device is kept busy; the counter moves some ten times a second."""
_SETTLE_SECONDS = 0.15


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
        """Run over and over for SECONDS; power is what the counter says between two of its ticks while that goes on.

        run     enqueues `launches` launches without waiting, in about run_ms on the device
        """
        times = max(2, round(1e3 * SECONDS / run_ms))
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(times):
            run()
        end.record()
        ticks = self._ticks(end)
        (t0, e0), (t1, e1) = ticks[0], ticks[-1]
        watts = (e1 - e0) / 1e3 / (t1 - t0)
        ms = start.elapsed_time(end) / (times * launches)
        return Energy(watts * ms / 1e3, watts, ms)

    def _ticks(self, end: torch.cuda.Event) -> list[tuple[float, int]]:
        """When the counter moved, and to what, after the power has settled and before the device is done."""
        time.sleep(_SETTLE_SECONDS)
        found, last = list[tuple[float, int]](), self.millijoules()
        while not end.query():  # type: ignore[no-untyped-call]
            now = self.millijoules()
            if now != last and not end.query():  # type: ignore[no-untyped-call]
                found.append((time.perf_counter(), now))
            last = now
            time.sleep(0.001)
        if len(found) < 2:
            raise RuntimeError(f"the energy counter moved {len(found)} times in {SECONDS} s")
        return found
