"""From a folder to programs that answer: read, compile for every device, warm up; traffic goes on meanwhile."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from lacuna_kernels import Batch, Graph, ModelError, Options, Value, ValueType
from lacuna_service.config import ServingConfig
from lacuna_service.replica import Replica
from lacuna_service.repository import BrokenModel, Repository, StoredModel
from lacuna_service.worker import Worker

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A version that has answered its warm-up on every device it is for."""

    graph: Graph
    config: ServingConfig
    replicas: list[Replica]


class Loader:
    """Reads and compiles on a builder thread of its own, one version after the other."""

    def __init__(self, repository: Repository, workers: Sequence[Worker]) -> None:
        self._repository, self._workers = repository, workers
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="lacuna-builder")

    async def versions(self, name: str) -> list[int]:
        """Return the versions of a model; raises BrokenModel."""
        return await self._build(lambda: self._repository.versions(name))

    async def load(self, name: str, version: int) -> LoadedModel:
        """Make one version ready to answer; raises BrokenModel with the reason, whatever it is."""
        try:
            stored = await self._build(lambda: self._repository.read(name, version))
            return LoadedModel(stored.model.graph, stored.config, await self._replicas(stored))
        except BrokenModel:
            raise
        except ModelError as error:
            raise BrokenModel(str(error)) from error
        except Exception as error:
            log.exception("model %r version %d cannot be loaded", name, version)
            raise BrokenModel(f"{type(error).__name__}: {error}") from error

    async def _replicas(self, stored: StoredModel) -> list[Replica]:
        replicas: list[Replica] = []
        try:
            for worker in chosen(self._workers, stored.config):
                replicas.append(await self._compile(worker, stored))
                await worker.warm_up(replicas[-1].program, replicas[-1].probe)
        except BaseException:
            for replica in replicas:
                await asyncio.shield(replica.worker.close(replica.program))
            raise
        return replicas

    async def _compile(self, worker: Worker, stored: StoredModel) -> Replica:
        graph, config = stored.model.graph, stored.config
        options = Options(config.precision, config.max_batch_cost, config.first_plan_cost)
        program = await self._build(lambda: worker.backend.compile(graph, stored.model.weights, options))
        return Replica(worker, program, smallest_batch(graph))

    async def _build(self, step: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._builder, step)

    def close(self) -> None:
        """End the builder thread, after what it is doing."""
        self._builder.shutdown(wait=False, cancel_futures=True)


def chosen(workers: Sequence[Worker], config: ServingConfig) -> list[Worker]:
    """Return the devices that a model asks for; raises BrokenModel if one is not there."""
    on_cpu = all(worker.backend.device.uuid is None for worker in workers)
    if config.devices == "all" or on_cpu:
        return list(workers)
    by_index = {worker.backend.device.index: worker for worker in workers}
    if missing := sorted(set(config.devices) - by_index.keys()):
        raise BrokenModel(f"serving.toml: there is no device {missing[0]}, there are {sorted(by_index)}")
    return [by_index[index] for index in dict.fromkeys(config.devices)]


def smallest_batch(graph: Graph) -> Batch:
    """Return a batch that any working program answers: one row, a cloud of one point, a node with an edge to itself."""
    return {name: _zeros(kind) for name, kind in graph.input_value_types.items()}


def _zeros(kind: ValueType) -> Value:
    data = torch.zeros((1, *kind.shape), dtype=kind.dtype.torch)
    return Value(data, torch.tensor([0, 1]) if kind.axis.ragged else None)
