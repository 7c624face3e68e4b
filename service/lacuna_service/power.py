"""Reads the GPUs' meters through NVML and keeps the series of power and energy; without a GPU there are none."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import pynvml

from lacuna_kernels import DeviceInfo
from lacuna_service.energy import Busy, Ledger
from lacuna_service.metrics import Metrics

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 0.1
LAG_SECONDS = 1.0  # a window is divided when its batches have been reported
GAUGE_SAMPLES = 10


@dataclass(slots=True)
class Meter:
    """One GPU's meter and account."""

    index: int
    handle: object
    ledger: Ledger
    samples: deque[tuple[float, int]] = field(default_factory=deque)


class PowerSampler:
    """Samples the energy counters at 10 Hz on a thread of its own and divides what they show among models.

    Between `start` and `close`, `report` may be called from any thread. A device that NVML does not know, or whose
    energy cannot be read, has no series; a server without a GPU has none at all.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._meters = metrics, dict[int, Meter]()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, devices: Sequence[DeviceInfo]) -> None:
        """Find each device's meter by UUID and start to sample."""
        wanted = {device.index: device.uuid for device in devices if device.uuid is not None}
        if not wanted or not _open_nvml():
            return
        for index, uuid in wanted.items():
            try:
                handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                counter = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
                idle_watts = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000  # nothing runs yet
            except pynvml.NVMLError as error:
                log.warning("device %d (%s) has no energy meter: %s", index, uuid, error)
                continue
            self._meters[index] = Meter(index, handle, Ledger(time.monotonic(), counter, idle_watts))
        if self._meters:
            self._thread = threading.Thread(target=self._run, name="power", daemon=True)
            self._thread.start()

    def batch(self, device: int, shares: Sequence[tuple[str, float]], busy_seconds: float, ended_at: float) -> None:
        """Report a finished batch: its requests' (model, cost), device seconds, and its end on time.monotonic()."""
        if meter := self._meters.get(device):
            with self._lock:
                meter.ledger.report(Busy(ended_at - busy_seconds, ended_at, tuple(shares)))

    def watts(self, device: int) -> float | None:
        """Energy per busy second of the last batches, in watts; None where unknown."""
        meter = self._meters.get(device)
        return meter.ledger.running_watts if meter else None

    def close(self) -> None:
        """Stop sampling and divide what is left."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            try:
                self._sample(lag_seconds=0.0)
                pynvml.nvmlShutdown()
            except pynvml.NVMLError as error:
                log.warning("the last energy is not accounted for: %s", error)
        self._meters, self._thread = {}, None

    def _run(self) -> None:
        turn = 0
        while not self._stop.wait(SAMPLE_SECONDS):
            try:
                self._sample(LAG_SECONDS)
                if turn % GAUGE_SAMPLES == 0:
                    self._read_gauges()
            except pynvml.NVMLError as error:
                log.warning("the power meter cannot be read: %s", error)
            turn += 1

    def _sample(self, lag_seconds: float) -> None:
        for meter in self._meters.values():
            meter.samples.append((time.monotonic(), pynvml.nvmlDeviceGetTotalEnergyConsumption(meter.handle)))
            while meter.samples and meter.samples[0][0] <= time.monotonic() - lag_seconds:
                self._settle(meter, *meter.samples.popleft())

    def _settle(self, meter: Meter, at: float, counter_mj: int) -> None:
        with self._lock:
            parts = meter.ledger.settle(at, counter_mj)
        for model, millijoules in parts.items():
            self._metrics.energy_joules.labels(model).inc(millijoules / 1000)
        self._metrics.device_energy_joules.labels(str(meter.index)).inc(sum(parts.values()) / 1000)

    def _read_gauges(self) -> None:
        for meter in self._meters.values():
            device, memory = str(meter.index), pynvml.nvmlDeviceGetMemoryInfo(meter.handle)
            m = self._metrics
            m.device_power_watts.labels(device).set(pynvml.nvmlDeviceGetPowerUsage(meter.handle) / 1000)
            for kind in ("total", "used", "free"):
                m.device_memory_bytes.labels(device, kind).set(getattr(memory, kind))
            use = pynvml.nvmlDeviceGetUtilizationRates(meter.handle)
            m.device_utilization_ratio.labels(device).set(use.gpu / 100)
            clock = pynvml.nvmlDeviceGetClockInfo(meter.handle, pynvml.NVML_CLOCK_SM)
            m.device_clock_hertz.labels(device).set(clock * 1_000_000)
            celsius = pynvml.nvmlDeviceGetTemperature(meter.handle, pynvml.NVML_TEMPERATURE_GPU)
            m.device_temperature_celsius.labels(device).set(celsius)


def _open_nvml() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.info("no NVML, so no series of power and energy: %s", error)
        return False
    return True
