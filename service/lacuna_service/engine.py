"""The engine: which models there are, which version answers, and the one call that answers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lacuna_kernels import Batch, DeviceKind, Graph, Value

from lacuna_service.config import ServingConfig
from lacuna_service.metrics import Metrics
from lacuna_service.statistics import Statistics

State = Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the engine needs to know to start.

    startup      models to load when it starts; None loads all
    cpu_threads  of the CPU backend; 0 leaves one core to the event loop
    """

    repository: Path
    device: DeviceKind = "auto"
    model_control: Literal["none", "explicit"] = "none"
    startup: tuple[str, ...] | None = None
    cpu_threads: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request gave.

    values          the outputs by name, on the CPU
    items           rows or clouds; cost: rows or points
    energy_joules   modelled from the running power; None without a meter
    """

    values: dict[str, Value]
    items: int
    cost: int
    queue_seconds: float
    compute_seconds: float
    energy_joules: float | None


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version of a model as the repository's index lists it; version is empty where a name has none."""

    name: str
    version: str
    state: State
    reason: str


@dataclass(slots=True, weakref_slot=True, eq=False)
class ServedModel:
    """One version of a model that answers, for as long as somebody holds it, even after it was unloaded.

    max_batch_size   rows of the largest batch; 0 where an input is a cloud
    """

    name: str
    version: str
    graph: Graph
    config: ServingConfig
    max_batch_size: int
    statistics: Statistics = field(default_factory=Statistics)
    ready: bool = True


class Engine:
    """Loads the models of a repository onto the devices, and answers requests. Lives on one event loop."""

    def __init__(self, config: EngineConfig, metrics: Metrics) -> None:
        self.config, self.metrics = config, metrics

    @property
    def ready(self) -> bool:
        """Whether requests are taken: started, not stopping, devices alive."""
        raise NotImplementedError

    async def start(self) -> None:
        """Open the devices, load and warm up the models; a broken one is UNAVAILABLE, the others serve."""
        raise NotImplementedError

    async def stop(self, drain_s: float) -> None:
        """Refuse new work, finish what waits, for at most so long, and close the devices."""
        raise NotImplementedError

    def index(self) -> list[IndexEntry]:
        """List every version of every model, with its state."""
        raise NotImplementedError

    def get(self, name: str, version: str | None = None) -> ServedModel:
        """Return a model that answers, the newest version by default; raises NotFound or NotReady."""
        raise NotImplementedError

    async def load(self, name: str) -> None:
        """Load or reload all versions of a model; raises BadRequest with the reason, NotFound."""
        raise NotImplementedError

    async def unload(self, name: str) -> None:
        """Take a model out of service; requests that came before are answered."""
        raise NotImplementedError

    async def infer(
        self, model: ServedModel, batch: Batch, *, timeout_s: float | None = None, priority: int = 0
    ) -> Answer:
        """Answer one request, checked here.

        Raises BadRequest, TooLarge, QueueFull, NotReady, OutOfMemory, DeadlineExceeded or Internal. Work whose
        awaiting task is cancelled before it starts is dropped.
        """
        raise NotImplementedError
