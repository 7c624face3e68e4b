"""The power sampler on meters that behave as NVML's do; a machine without a GPU has none, so they are made up here."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from lacuna_kernels import DeviceInfo
from lacuna_service import power
from lacuna_service.metrics import Metrics
from lacuna_service.power import PowerSampler

GAUGES = {
    "power": ("nvmlDeviceGetPowerUsage", {"lacuna_device_power_watts"}),
    "memory": ("nvmlDeviceGetMemoryInfo", {"lacuna_device_memory_bytes"}),
    "utilization": ("nvmlDeviceGetUtilizationRates", {"lacuna_device_utilization_ratio"}),
    "clock": ("nvmlDeviceGetClockInfo", {"lacuna_device_clock_hertz"}),
    "temperature": ("nvmlDeviceGetTemperature", {"lacuna_device_temperature_celsius"}),
}
ALL_GAUGES = set().union(*(names for _, names in GAUGES.values()))
ENERGY = "nvmlDeviceGetTotalEnergyConsumption"


@dataclass
class Gpu:
    """What one made-up GPU answers; `broken` names the functions of NVML that it does not support."""

    uuid: str
    energy_mj: int = 1_000_000
    watts: int = 100
    broken: set[str] = field(default_factory=set)
    asked: int = 0
    was_asked: threading.Event = field(default_factory=threading.Event)


class Machine:
    """GPUs in NVML's order, and the clock that the sampler reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpus, self.now, self.opened = list[Gpu](), 50.0, 0
        self._patch = monkeypatch
        monkeypatch.setattr(power, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(power, "SAMPLE_SECONDS", 3600.0)  # the tests call its steps
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: self._count(1))
        monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: self._count(-1))
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", self._find)
        memory = SimpleNamespace(total=300, used=100, free=200)
        self._answer(ENERGY, self._energy)
        self._answer("nvmlDeviceGetPowerUsage", lambda gpu: gpu.watts * 1000)
        self._answer("nvmlDeviceGetMemoryInfo", lambda gpu: memory)
        self._answer("nvmlDeviceGetUtilizationRates", lambda gpu: SimpleNamespace(gpu=75))
        self._answer("nvmlDeviceGetClockInfo", lambda gpu: 1980)
        self._answer("nvmlDeviceGetTemperature", lambda gpu: 41)

    def add(self, uuid: str, **what: Any) -> Gpu:
        self.gpus.append(Gpu(uuid, **what))
        return self.gpus[-1]

    def _count(self, change: int) -> None:
        self.opened += change

    def _find(self, uuid: str) -> Gpu:
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def _energy(self, gpu: Gpu) -> int:
        gpu.asked += 1
        if gpu.asked > 3:
            gpu.was_asked.set()
        return gpu.energy_mj

    def _answer(self, name: str, answer: Callable[[Gpu], object]) -> None:
        def ask(gpu: Gpu, *_: object) -> object:
            if name in gpu.broken:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return answer(gpu)

        self._patch.setattr(pynvml, name, ask)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def device(index: int, uuid: str | None) -> DeviceInfo:
    return DeviceInfo(index, "a GPU", uuid, 1)


def series(metrics: Metrics, *, of: str = "") -> dict[tuple[str, str], float]:
    """Values of the devices and of energy, by the series' name and its first label; `of` takes one device alone."""
    samples = [sample for metric in metrics.registry.collect() for sample in metric.samples]
    chosen = [one for one in samples if "device_" in one.name or one.name == "lacuna_energy_joules_total"]
    return {
        (one.name, one.labels.get("device", one.labels.get("model", ""))): one.value
        for one in chosen
        if not of or one.labels.get("device") == of
    }


def millijoules(metrics: Metrics, name: str) -> dict[str, int]:
    return {
        label: round(value * 1000) for (series_name, label), value in series(metrics).items() if series_name == name
    }


def test_devices_are_matched_by_uuid_not_by_order(machine: Machine) -> None:
    metrics = Metrics()
    for uuid, watts in (("GPU-c", 300), ("GPU-a", 100), ("GPU-b", 200)):
        machine.add(uuid, watts=watts)
    sampler = PowerSampler(metrics)

    sampler.start([device(0, "GPU-a"), device(1, "GPU-b")])
    sampler._read_gauges()
    sampler.close()

    watts_of = {label: value for (name, label), value in series(metrics).items() if name == "lacuna_device_power_watts"}
    assert watts_of == {"0": 100.0, "1": 200.0}


def test_without_nvml_there_is_no_series_and_no_thread(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_library)
    metrics = Metrics()
    sampler, threads = PowerSampler(metrics), threading.active_count()

    sampler.start([device(0, "GPU-a")])
    started = threading.active_count() - threads
    sampler.batch(0, [("a", 1.0)], 0.5, machine.now)
    watts = sampler.watts(0)
    sampler.close()

    assert (started, watts, series(metrics)) == (0, None, {})


def test_a_cpu_does_not_even_open_nvml(machine: Machine) -> None:
    sampler, threads = PowerSampler(Metrics()), threading.active_count()

    sampler.start([device(0, None)])

    assert (machine.opened, threading.active_count()) == (0, threads)


@pytest.mark.parametrize("uuid", ["GPU-meterless", "GPU-unknown"])
def test_a_device_without_an_energy_meter_has_no_series_and_the_others_have(machine: Machine, uuid: str) -> None:
    machine.add("GPU-meterless", broken={ENERGY})
    machine.add("GPU-a")
    metrics = Metrics()
    sampler = PowerSampler(metrics)

    sampler.start([device(0, uuid), device(1, "GPU-a")])
    sampler._read_gauges()
    sampler.close()

    assert series(metrics, of="0") == {}
    assert {name for name, _ in series(metrics, of="1")} == ALL_GAUGES | {"lacuna_device_energy_joules_total"}


def test_nvml_that_was_opened_is_closed(machine: Machine) -> None:
    machine.add("GPU-meterless", broken={ENERGY})
    machine.add("GPU-a")

    for uuid in ("GPU-meterless", "GPU-a"):
        sampler = PowerSampler(Metrics())
        sampler.start([device(0, uuid)])
        sampler.close()
        assert machine.opened == 0


def test_models_and_idle_add_up_to_the_devices_counter(machine: Machine) -> None:
    gpu, metrics = machine.add("GPU-a"), Metrics()
    sampler = PowerSampler(metrics)
    sampler.start([device(0, "GPU-a")])

    for energy in (300_000, 33_333, 100_001):
        machine.now += 1.0
        gpu.energy_mj += energy
        sampler.batch(0, [("a", 3.0), ("b", 4.0)], 0.5, machine.now)
        sampler._sample(lag_seconds=1.0)
    sampler.close()

    parts = millijoules(metrics, "lacuna_energy_joules_total")
    assert parts["idle"] == 50_000 + 33_333 + 50_000  # 100 W for each half second that nothing ran, or all
    assert min(parts["a"], parts["b"]) > 0
    assert sum(parts.values()) == 433_334
    assert millijoules(metrics, "lacuna_device_energy_joules_total") == {"0": 433_334}


@pytest.mark.parametrize("reading", GAUGES)
def test_a_gauge_that_a_device_has_not_got_leaves_the_others(
    machine: Machine, reading: str, caplog: pytest.LogCaptureFixture
) -> None:
    function, lost = GAUGES[reading]
    machine.add("GPU-a", broken={function})
    machine.add("GPU-b")
    metrics = Metrics()
    sampler = PowerSampler(metrics)

    with caplog.at_level(logging.WARNING):
        sampler.start([device(0, "GPU-a"), device(1, "GPU-b")])
        for _ in range(3):
            sampler._read_gauges()
        sampler.close()

    energy = {"lacuna_device_energy_joules_total"}
    assert {name for name, _ in series(metrics, of="0")} == (ALL_GAUGES - lost) | energy
    assert {name for name, _ in series(metrics, of="1")} == ALL_GAUGES | energy
    assert [record.getMessage() for record in caplog.records] == [f"device 0: {reading} cannot be read: Not Supported"]


def test_a_counter_that_fails_is_logged_once_until_it_works_again_and_nothing_is_lost(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    failing, other = machine.add("GPU-a"), machine.add("GPU-b")
    metrics = Metrics()
    sampler = PowerSampler(metrics)
    sampler.start([device(0, "GPU-a"), device(1, "GPU-b")])

    logged = []
    for broken in ({ENERGY}, set[str](), {ENERGY}, set[str]()):
        failing.broken = broken
        for _ in range(3):
            machine.now += 0.1
            failing.energy_mj += 10
            other.energy_mj += 7
            sampler._sample(lag_seconds=0.0)
        logged.append(len(caplog.records))
    sampler.close()

    assert logged == [1, 1, 2, 2]
    assert millijoules(metrics, "lacuna_device_energy_joules_total") == {"0": 120, "1": 84}


def test_its_thread_samples_until_it_is_closed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "SAMPLE_SECONDS", 0.001)
    gpu, threads = machine.add("GPU-a"), threading.active_count()
    sampler = PowerSampler(Metrics())

    sampler.start([device(0, "GPU-a")])
    sampled = gpu.was_asked.wait(60.0)
    sampler.close()

    assert sampled
    assert threading.active_count() == threads
