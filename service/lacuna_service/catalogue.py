"""The table of models: which version answers, which cannot and why."""

import re
from dataclasses import dataclass
from typing import Literal

from lacuna_kernels import Graph
from lacuna_service.batcher import Batcher
from lacuna_service.config import ServingConfig
from lacuna_service.errors import NotFound, NotReady
from lacuna_service.metrics import Metrics
from lacuna_service.repository import BrokenModel, Repository
from lacuna_service.statistics import Statistics

State = Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version of a model as the repository's index lists it; version is empty where a name has none."""

    name: str
    version: str
    state: State
    reason: str


@dataclass(slots=True, weakref_slot=True, eq=False)
class ServedModel:
    """One version of a model. Whoever holds it may use it, even after it was replaced or unloaded.

    max_batch_size   rows of the largest batch; 0 where an input is a cloud
    """

    name: str
    version: str
    graph: Graph
    config: ServingConfig
    max_batch_size: int
    statistics: Statistics
    batcher: Batcher
    ready: bool = True


class Catalogue:
    """What is served, what is wrong, and what lies in the repository besides."""

    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self._repository, self._metrics = repository, metrics
        self._served: dict[str, dict[int, ServedModel]] = {}
        self._problems: dict[str, dict[int | None, str]] = {}
        self._changing: dict[str, State] = {}

    def get(self, name: str, version: str | None = None) -> ServedModel:
        """Return a model that answers, the newest version by default; raises NotFound or NotReady."""
        versions = self._served.get(name, {})
        if version:
            number = int(version) if _VERSION.fullmatch(version) else 0
            if number in versions:
                return versions[number]
            raise self._absent(name, version)
        if not versions:
            raise self._absent(name, None)
        return versions[max(versions)]

    def _absent(self, name: str, version: str | None) -> NotFound | NotReady:
        what = f"model {name[:128]!a}" + (f" version {version[:16]!a}" if version else "")
        for entry in self._entries(name) if self.knows(name) else []:
            if version is None or entry.version == version:
                return NotReady(f"{what} is {entry.state}: {entry.reason or 'wait'}")
        return NotFound(f"{what} does not exist")

    def knows(self, name: str) -> bool:
        """Whether a model of that name is served, is broken, or lies in the repository."""
        return name in self._served or name in self._problems or self._repository.holds(name)

    def served(self, name: str) -> list[ServedModel]:
        """Return the versions that answer, oldest first."""
        versions = self._served.get(name, {})
        return [versions[number] for number in sorted(versions)]

    def all_served(self) -> list[ServedModel]:
        """Return every version that answers."""
        return [model for name in self._served for model in self.served(name)]

    def serve(self, model: ServedModel) -> None:
        """Let a version answer from now on, instead of the one that did before."""
        number = int(model.version)
        self._served.setdefault(model.name, {})[number] = model
        self._problems.get(model.name, {}).pop(number, None)
        self._metrics.model_ready.labels(model.name, model.version).set(1)

    def withdraw(self, model: ServedModel) -> None:
        """Let a version answer no new request."""
        model.ready = False
        del self._served[model.name][int(model.version)]
        if not self._served[model.name]:
            del self._served[model.name]
        self._metrics.model_ready.labels(model.name, model.version).set(0)

    def fail(self, name: str, version: int | None, reason: str) -> None:
        """Remember why a version, or all of a model, could not be loaded; what answers goes on answering."""
        self._problems.setdefault(name, {})[version] = reason
        if version is not None and version not in self._served.get(name, {}):
            self._metrics.model_ready.labels(name, str(version)).set(0)

    def begin(self, name: str, state: State) -> None:
        """Note that a model is being loaded or unloaded."""
        self._changing[name] = state
        if state == "LOADING":
            self._problems.pop(name, None)

    def end(self, name: str) -> None:
        """Note that the change is over."""
        self._changing.pop(name, None)

    def index(self) -> list[IndexEntry]:
        """List every version of every model, with its state."""
        try:
            stored = self._repository.names()
        except BrokenModel:
            stored = []
        names = {*stored, *self._served, *self._problems}
        return [entry for name in sorted(names) for entry in self._entries(name)]

    def _entries(self, name: str) -> list[IndexEntry]:
        problems = self._problems.get(name, {})
        numbers = {*self._served.get(name, {}), *(number for number in problems if number is not None)}
        try:
            numbers.update(self._repository.versions(name))
        except BrokenModel as error:
            problems = {None: str(error), **problems}
        if not numbers:
            return [IndexEntry(name, "", self._changing.get(name, "UNAVAILABLE"), problems.get(None, ""))]
        return [self._entry(name, number, problems) for number in sorted(numbers)]

    def _entry(self, name: str, number: int, problems: dict[int | None, str]) -> IndexEntry:
        reason = problems.get(number) or problems.get(None, "")
        if number in self._served.get(name, {}):
            return IndexEntry(name, str(number), "READY", reason)
        state = self._changing.get(name, "UNAVAILABLE")
        return IndexEntry(name, str(number), state, reason or ("not loaded" if state == "UNAVAILABLE" else ""))
