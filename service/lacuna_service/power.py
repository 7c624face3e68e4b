"""Reads the GPUs' meters through NVML and keeps the series of power and energy; without a GPU there are none."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pynvml

from lacuna_kernels import DeviceInfo
from lacuna_service.energy import Busy, Ledger
from lacuna_service.errors import NotReady
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

    Between `start` and `close`, `batch` may be called from any thread. A device that NVML does not know, or whose
    energy cannot be read at the start, has no series; a server without a GPU has none at all. Not every GPU has every
    gauge, so each is read alone: one that fails is logged once and takes no other with it.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._meters = metrics, dict[int, Meter]()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._failed = set[tuple[int, str]]()  # (device, reading) that has been logged

    def start(self, devices: Sequence[DeviceInfo]) -> None:
        """Find each device's meter by UUID and start to sample."""
        wanted = {device.index: device.uuid for device in devices if device.uuid is not None}
        if not wanted or not _open_nvml():
            return
        for index, uuid in wanted.items():
            if meter := _find_meter(index, uuid):
                self._meters[index] = meter
        if self._meters:
            self._thread = threading.Thread(target=self._run, name="power", daemon=True)
            self._thread.start()
        else:
            _close_nvml()

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
            self._sample(lag_seconds=0.0)
            _close_nvml()
        self._meters, self._thread = {}, None

    def _run(self) -> None:
        turn = 0
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample(LAG_SECONDS)
            if turn % GAUGE_SAMPLES == 0:
                self._read_gauges()
            turn += 1

    def _sample(self, lag_seconds: float) -> None:
        for meter in self._meters.values():
            self._read_counter(meter)
            while meter.samples and meter.samples[0][0] <= time.monotonic() - lag_seconds:
                self._settle(meter, *meter.samples.popleft())

    def _read_counter(self, meter: Meter) -> None:
        try:
            counter_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(meter.handle)
        except pynvml.NVMLError as error:  # what it misses is divided when it works again
            self._warn(meter.index, "energy", error)
            return
        self._failed.discard((meter.index, "energy"))
        meter.samples.append((time.monotonic(), counter_mj))

    def _settle(self, meter: Meter, at: float, counter_mj: int) -> None:
        with self._lock:
            parts = meter.ledger.settle(at, counter_mj)
        for model, millijoules in parts.items():
            self._metrics.energy_joules.labels(model).inc(millijoules / 1000)
        self._metrics.device_energy_joules.labels(str(meter.index)).inc(sum(parts.values()) / 1000)

    def _read_gauges(self) -> None:
        for meter in self._meters.values():
            for reading, read in GAUGES.items():
                try:
                    read(self._metrics, str(meter.index), meter.handle)
                except pynvml.NVMLError as error:
                    self._warn(meter.index, reading, error)

    def _warn(self, device: int, reading: str, error: Exception) -> None:
        if (device, reading) not in self._failed:
            self._failed.add((device, reading))
            log.warning("device %d: %s cannot be read: %s", device, reading, error)


def _read_power(metrics: Metrics, device: str, handle: object) -> None:
    milliwatts = pynvml.nvmlDeviceGetPowerUsage(handle)
    metrics.device_power_watts.labels(device).set(milliwatts / 1000)


def _read_memory(metrics: Metrics, device: str, handle: object) -> None:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    for kind in ("total", "used", "free"):
        metrics.device_memory_bytes.labels(device, kind).set(getattr(memory, kind))


def _read_utilization(metrics: Metrics, device: str, handle: object) -> None:
    percent = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
    metrics.device_utilization_ratio.labels(device).set(percent / 100)


def _read_clock(metrics: Metrics, device: str, handle: object) -> None:
    megahertz = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
    metrics.device_clock_hertz.labels(device).set(megahertz * 1_000_000)


def _read_temperature(metrics: Metrics, device: str, handle: object) -> None:
    celsius = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
    metrics.device_temperature_celsius.labels(device).set(celsius)


GAUGES: dict[str, Callable[[Metrics, str, object], None]] = {
    "power": _read_power,
    "memory": _read_memory,
    "utilization": _read_utilization,
    "clock": _read_clock,
    "temperature": _read_temperature,
}
"""Each asks NVML before it makes its series, so one that the device has not got has no series."""


def _find_meter(index: int, uuid: str) -> Meter | None:
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        counter_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        log.warning("device %d (%s) has no energy meter: %s", index, uuid, error)
        return None
    return Meter(index, handle, Ledger(time.monotonic(), counter_mj, _power_now(handle)))


def energy_counter(device: DeviceInfo) -> Callable[[], float]:
    """Return what reads the joules that a GPU has used since its driver was loaded; raises NotReady if none does."""
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        raise NotReady(f"device {device.index} ({device.name}) does not count its energy: {error}") from error
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000


def _power_now(handle: object) -> float | None:
    """Watts drawn at the start, where nothing runs yet; None if the device does not say, and the ledger learns it."""
    try:
        return float(pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)
    except pynvml.NVMLError:
        return None


def _open_nvml() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.info("no NVML, so no series of power and energy: %s", error)
        return False
    return True


def _close_nvml() -> None:
    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        log.warning("NVML cannot be closed: %s", error)
