"""The engine: devices, models coming and going, and the one call that answers."""

import asyncio
import logging
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from lacuna_kernels import (
    Batch,
    DeviceInfo,
    DeviceKind,
    InputError,
    Value,
    check_request,
    cost,
    open_backend,
)
from lacuna_service.batcher import Batcher
from lacuna_service.body import BYTES_PASSED_PER_PARSED, offload
from lacuna_service.catalogue import Catalogue, IndexEntry, ServedModel, State
from lacuna_service.config import is_ragged
from lacuna_service.devices import Devices, OpenDevice
from lacuna_service.errors import BadRequest, NotFound, NotReady
from lacuna_service.journal import EnergyMeter, Journal
from lacuna_service.loader import LoadedModel, Loader
from lacuna_service.metrics import Metrics
from lacuna_service.replica import Replica
from lacuna_service.repository import BrokenModel, Repository
from lacuna_service.statistics import Statistics
from lacuna_service.tickets import Answer

__all__ = ["Answer", "Engine", "EngineConfig", "IndexEntry", "ServedModel", "State"]

log = logging.getLogger(__name__)
T = TypeVar("T")
CLOSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the engine needs to know to start.

    model_control   explicit allows load and unload while it runs
    startup         models to load when it starts; None loads all
    cpu_threads     of the CPU backend; 0 leaves one core to the event loop
    """

    repository: Path
    device: DeviceKind = "auto"
    model_control: Literal["none", "explicit"] = "none"
    startup: tuple[str, ...] | None = None
    cpu_threads: int = 0


class Engine:
    """Loads the models of a repository onto the devices, and answers requests. Lives on one event loop."""

    def __init__(
        self,
        config: EngineConfig,
        metrics: Metrics,
        meter: EnergyMeter | None = None,
        open_device: OpenDevice = open_backend,
    ) -> None:
        self.config, self.metrics = config, metrics
        self._meter, self._devices = meter, Devices(open_device, meter)
        self._repository = Repository(config.repository)
        self._catalogue = Catalogue(self._repository, metrics)
        self._statistics: dict[tuple[str, int], Statistics] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loader: Loader | None = None
        self._open: set[Replica] = set()
        self._started = self._stopping = self._lost_device = False

    @property
    def ready(self) -> bool:
        """Whether requests are taken: all models tried, not stopping, and no device has failed."""
        return self._started and not self._stopping and not self._lost_device

    @property
    def devices(self) -> list[DeviceInfo]:
        """The devices that are open."""
        return self._devices.infos

    async def start(self) -> None:
        """Open the devices, load and warm up the models; a broken one is UNAVAILABLE, the others serve.

        Raises NotADirectoryError if there is no repository, DeviceError if there is no such device.
        """
        self._loop = asyncio.get_running_loop()
        self._repository.check()
        await self._devices.open(self.config.device, self.config.cpu_threads)
        self._loader = Loader(self._repository, self._devices.workers)
        names = self._repository.names() if self.config.startup is None else self.config.startup
        await asyncio.shield(self._spawn(self._load_all(names)))
        self._started = True

    async def _load_all(self, names: list[str] | tuple[str, ...]) -> None:
        for name in names:
            reasons = await self._alone(name, self._load)
            if self._stopping:
                log.info("stopped while model %r was loaded", name)
                return
            for reason in reasons:
                log.error("model %r is unavailable: %s", name, reason)

    async def stop(self, drain_s: float) -> None:
        """Refuse new work, finish what waits, for at most so long, and close the devices."""
        self._stopping = True
        try:
            async with asyncio.timeout(drain_s):
                await asyncio.gather(*self._tasks, return_exceptions=True)
                await asyncio.gather(*(model.batcher.drain() for model in self._catalogue.all_served()))
        except TimeoutError:
            log.warning("requests were given up: they did not end within %g s", drain_s)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._close()
        except TimeoutError:
            log.warning("a device is still busy after %g s and is left to the end of the process", CLOSE_SECONDS)

    async def _close(self) -> None:
        for model in self._catalogue.all_served():
            model.batcher.abandon("the server is stopping")
            self._catalogue.withdraw(model)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._loader is not None:
            self._loader.close()
        while self._open:
            replica = self._open.pop()
            await replica.worker.close(replica.program)
        await self._devices.close()

    def index(self) -> list[IndexEntry]:
        """List every version of every model, with its state."""
        return self._catalogue.index()

    def get(self, name: str, version: str | None = None) -> ServedModel:
        """Return a model that answers, the newest version by default; raises NotFound or NotReady."""
        return self._catalogue.get(name, version)

    async def infer(
        self, model: ServedModel, batch: Batch, *, timeout_s: float | None = None, priority: int = 0
    ) -> Answer:
        """Answer one request, which is checked here completely.

        Raises BadRequest, TooLarge, QueueFull, NotReady, OutOfMemory, DeadlineExceeded or Internal. If the awaiting
        task is cancelled before the work starts, the work is dropped. Priority 1 goes first, then 0 or 2, then 3 to 10.
        """
        size = sum(map(_to_check, batch.values()))
        try:
            items = await offload(size, check_request, model.graph, batch, model.config.precision)
        except InputError as error:
            raise BadRequest(str(error)) from error
        if self._stopping:
            raise NotReady("the server is stopping")
        # clouds without points take memory too: if there are more of them than points, they are the cost
        return await model.batcher.infer(batch, items, max(items, cost(batch)), timeout_s, priority)

    async def load(self, name: str) -> None:
        """Load or reload all versions of a model, while those that answer go on until theirs is ready.

        Raises NotFound, or BadRequest with the reasons; a version that cannot be loaded again is not replaced.
        """
        self._check_control(name)
        if reasons := await asyncio.shield(self._spawn(self._alone(name, self._load))):
            raise BadRequest(f"model {name!r} could not be loaded: {'; '.join(reasons)}")

    async def unload(self, name: str) -> None:
        """Take a model out of service; returns when the requests that came before are answered. Raises NotFound."""
        self._check_control(name)
        await asyncio.shield(self._spawn(self._alone(name, self._unload)))

    def _check_control(self, name: str) -> None:
        if self.config.model_control != "explicit":
            raise BadRequest("models can be loaded and unloaded only with model control set to explicit")
        if self._stopping or self._loader is None:
            raise NotReady("the server is starting or stopping")
        if not self._catalogue.knows(name):
            raise NotFound(f"model {name[:128]!a} does not exist")

    async def _alone(self, name: str, change: Callable[[str], Coroutine[Any, Any, T]]) -> T:
        """Make one change of a model at a time."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            try:
                return await change(name)
            finally:
                self._catalogue.end(name)

    async def _load(self, name: str) -> list[str]:
        """Load all versions and return what went wrong."""
        assert self._loader is not None
        self._catalogue.begin(name, "LOADING")
        try:
            versions = await self._loader.versions(name)
        except BrokenModel as error:
            self._catalogue.fail(name, None, str(error))
            return [str(error)]
        reasons = [reason for version in versions if (reason := await self._load_version(name, version))]
        for model in self._catalogue.served(name):
            if int(model.version) not in versions:
                self._withdraw(model)
        return reasons

    async def _load_version(self, name: str, version: int) -> str | None:
        if self._stopping:
            return "the server is stopping"
        assert self._loader is not None
        try:
            loaded = await self._loader.load(name, version)
        except BrokenModel as error:
            self._catalogue.fail(name, version, str(error))
            return f"version {version}: {error}"
        self._serve(name, version, loaded)
        return None

    def _serve(self, name: str, version: int, loaded: LoadedModel) -> None:
        """Swap a loaded version in; the one before it is closed when nobody holds it any more."""
        statistics = self._statistics.setdefault((name, version), Statistics())
        for old in self._catalogue.served(name):
            if old.version == str(version):
                old.batcher.journal.close()
        journal = Journal(name, str(version), self.metrics, statistics, self._meter)
        batcher = Batcher(loaded.config, loaded.replicas, journal, partial(self._lost, name, str(version)))
        rows = 0 if is_ragged(loaded.graph) else loaded.config.max_batch_cost
        model = ServedModel(name, str(version), loaded.graph, loaded.config, rows, statistics, batcher)
        self._open.update(loaded.replicas)
        weakref.finalize(model, self._let_go, batcher, loaded.replicas).atexit = False
        self.metrics.queue_depth.labels(name).set_function(
            lambda: sum(model.batcher.waiting for model in self._catalogue.served(name))
        )
        self._catalogue.serve(model)

    def _withdraw(self, model: ServedModel) -> None:
        self._catalogue.withdraw(model)
        model.batcher.journal.close()

    def _let_go(self, batcher: Batcher, replicas: list[Replica]) -> None:
        """The last one who held a model has let go of it; this may be any thread."""
        try:
            self._loop.call_soon_threadsafe(self._retire, batcher, replicas)
        except RuntimeError:
            assert not self._open, "the event loop is closed before the engine"

    def _retire(self, batcher: Batcher, replicas: list[Replica]) -> None:
        for replica in replicas:
            replica.worker.feeders.remove(batcher)
            if replica in self._open:
                self._open.discard(replica)
                self._spawn(replica.worker.close(replica.program))

    async def _unload(self, name: str) -> None:
        self._catalogue.begin(name, "UNLOADING")
        models = self._catalogue.served(name)
        for model in models:
            self._withdraw(model)
        await asyncio.gather(*(model.batcher.drain() for model in models))

    def _lost(self, name: str, version: str, reason: str) -> None:
        """A model's programs have failed on every device."""
        self._lost_device = True
        for model in self._catalogue.served(name):
            if model.version == version and not model.batcher.replicas:
                self._withdraw(model)
                self._catalogue.fail(name, int(version), reason)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _to_check(value: Value) -> int:
    """Bytes to check of an input, as `offload` counts them: floating point is passed over once, others take longer."""
    parsed: int = value.data.nbytes // (BYTES_PASSED_PER_PARSED if value.data.is_floating_point() else 1)
    return parsed + (0 if value.offsets is None else value.offsets.nbytes)
