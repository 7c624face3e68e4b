"""What is written down of a model's batches and refusals: metrics, energy, the count of batches."""

from collections.abc import Sequence
from typing import Literal, Protocol

from lacuna_kernels import DeviceInfo, Program
from lacuna_service.jobs import Job
from lacuna_service.metrics import Metrics
from lacuna_service.statistics import Statistics
from lacuna_service.tickets import Answer

Reason = Literal["not_ready", "too_large", "queue_full", "too_late", "deadline", "cancelled"]


class EnergyMeter(Protocol):
    """Divides the energy of devices among the models that used it."""

    def start(self, devices: Sequence[DeviceInfo]) -> None:
        """Begin to measure; called once the devices are open."""
        ...

    def batch(self, device: int, shares: Sequence[tuple[str, float]], busy_seconds: float, ended_at: float) -> None:
        """Note a batch: its cost by model, how long the device was busy, when it ended by time.monotonic()."""
        ...

    def watts(self, device: int) -> float | None:
        """Return the power drawn while busy, if it is known."""
        ...

    def close(self) -> None:
        """Measure no more."""
        ...


class Journal:
    """Writes for one version of a model; on the event loop only."""

    def __init__(
        self, model: str, version: str, metrics: Metrics, statistics: Statistics, meter: EnergyMeter | None = None
    ) -> None:
        self.model, self._version, self._metrics = model, version, metrics
        self._statistics, self._meter = statistics, meter
        self._builds: dict[str, dict[str, int]] | None = {}
        self._queue_seconds = metrics.queue_seconds.labels(model)
        self._compute_seconds = metrics.compute_seconds.labels(model)
        self._batch_requests = metrics.batch_requests.labels(model)
        self._batch_cost = metrics.batch_cost.labels(model)

    def rejected(self, reason: Reason) -> None:
        """A request was given up before it was run."""
        self._metrics.rejected.labels(self.model, reason).inc()

    def ran(self, job: Job, device: DeviceInfo) -> None:
        """A batch is over, well or not."""
        self._statistics.execution_count += job.runs
        self._batch_requests.observe(len(job.tickets))
        self._batch_cost.observe(job.cost)
        if self._meter is not None and device.uuid is not None and job.runs:
            self._meter.batch(device.index, [(self.model, float(max(1, job.cost)))], job.busy_seconds, job.ended)

    def answered(self, answer: Answer) -> None:
        """A request got its outputs."""
        self._queue_seconds.observe(answer.queue_seconds)
        self._compute_seconds.observe(answer.compute_seconds)
        if answer.energy_joules is not None:
            self._metrics.request_energy_joules.labels(self.model).observe(answer.energy_joules)

    def joules(self, job: Job, device: DeviceInfo) -> float | None:
        """Return the energy of a batch as the running power suggests; None without a meter."""
        if self._meter is None or device.uuid is None:
            return None
        watts = self._meter.watts(device.index)
        return None if watts is None else watts * job.busy_seconds

    def program(self, device: str, program: Program) -> None:
        """Note what a program holds, and what it has built since the last time."""
        if self._builds is None or self._builds.get(device) == program.builds:
            return
        before, now = self._builds.get(device, {}), dict(program.builds)
        for why, count in now.items():
            self._metrics.program_builds.labels(self.model, why).inc(count - before.get(why, 0))
        self._builds[device] = now
        labels = (self.model, self._version, device)
        self._metrics.program_capacity.labels(*labels).set(program.capacity)
        self._metrics.program_memory_bytes.labels(*labels).set(program.memory_bytes)

    def close(self) -> None:
        """Take away the series of the programs: they are on their way out."""
        for device in self._builds or {}:
            self._metrics.program_capacity.remove(self.model, self._version, device)
            self._metrics.program_memory_bytes.remove(self.model, self._version, device)
        self._builds = None
