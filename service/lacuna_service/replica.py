"""A model's program on one device."""

from dataclasses import dataclass, field

from lacuna_kernels import Batch, DeviceInfo, Program
from lacuna_service.forecast import Forecast
from lacuna_service.worker import Worker


@dataclass(slots=True, eq=False)
class Replica:
    """A program, the worker that runs it, a batch that must work on it, and what is known of its speed."""

    worker: Worker
    program: Program
    probe: Batch
    forecast: Forecast = field(default_factory=Forecast)

    @property
    def device(self) -> DeviceInfo:
        """The device it runs on."""
        return self.worker.backend.device

    def load(self) -> tuple[int, float]:
        """Sort key: batches under way on the device, then the expected time until they are done."""
        return self.worker.outstanding, self.worker.wait_seconds()
