"""Small models made on the fly, and a device whose batches a test can hold, fail and count."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lacuna_kernels import (
    Batch,
    CpuBackend,
    DeviceInfo,
    Graph,
    Model,
    Options,
    Pending,
    Program,
    Result,
    Value,
    ValueType,
    Weights,
    collate,
    cost,
    load_model,
    parse_graph,
    random_weights,
    save_model,
)
from lacuna_service.engine import Engine, EngineConfig
from lacuna_service.metrics import Metrics

ROWS: dict[str, Any] = {
    "format": 1,
    "inputs": {"x": {"axis": "row", "shape": [12]}},
    "nodes": [
        {"name": "mix", "op": "kronecker_linear", "inputs": ["x"], "patterns": [[2, 4, 3, 2]], "activation": "relu"},
        {"name": "scores", "op": "linear", "inputs": ["mix"], "out_features": 5},
        {"name": "labels", "op": "argmax", "inputs": ["scores"]},
    ],
    "outputs": {"labels": {}, "scores": {}},
}
CLOUDS: dict[str, Any] = {
    "format": 1,
    "inputs": {"points": {"axis": "point", "columns": ["x", "y", "z", "intensity"]}},
    "nodes": [
        {"name": "grid", "op": "voxelize", "inputs": ["points"], "voxel_size_m": [0.5, 0.5, 0.5]},
        {
            "name": "stem",
            "op": "sparse_conv",
            "inputs": ["grid"],
            "mode": "submanifold",
            "kernel_size": [3, 3, 3],
            "out_channels": 6,
        },
        {"name": "logits", "op": "devoxelize", "inputs": ["stem", "grid"]},
        {"name": "labels", "op": "argmax", "inputs": ["logits"]},
    ],
    "outputs": {"labels": {}, "logits": {}},
}
SECONDS = 60.0  # how long a test may hang before it fails; none waits for it


def write_model(
    repository: Path, name: str, version: int = 1, document: Any = None, seed: int = 0, toml: str = ""
) -> Path:
    """Write a whole model folder; rows unless another graph is given."""
    graph = parse_graph(document or ROWS)
    folder = repository / name / str(version)
    save_model(Model(graph, random_weights(graph, seed)), folder)
    if toml:
        (folder / "serving.toml").write_text(toml)
    return folder


def rows(count: int = 1, seed: int = 0) -> Batch:
    return {"x": Value(torch.randn(count, 12, generator=torch.Generator().manual_seed(seed)))}


def clouds(*points: int, seed: int = 0) -> Batch:
    data = torch.rand(sum(points), 4, generator=torch.Generator().manual_seed(seed)) * 4 - 2
    return {"points": Value(data, torch.tensor([0, *points]).cumsum(0))}


def alone(folder: Path, batch: Batch) -> dict[str, Value]:
    """Answer one request with nothing of the service in between."""
    model = load_model(folder)
    return CpuBackend().compile(model.graph, model.weights, Options()).submit(batch).result().values


@dataclass
class Stage:
    """What the programs of a staged device do; changed by the test while they run.

    held    batches wait in the device until `let(n)` lets n of them go
    fault   returns the error that submitting a batch is to raise, or None; late_fault, waiting for it on a "GPU"
    busy    says how long a batch of a cost took
    costs   of the batches that were submitted, warm-ups included
    """

    held: bool = False
    fault: Callable[[Batch], Exception | None] = lambda batch: None
    late_fault: Callable[[Batch], Exception | None] = lambda batch: None
    busy: Callable[[int], float] = lambda cost: 0.0
    costs: list[int] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    growth: dict[str, int] = field(default_factory=dict)
    programs: int = 0
    closed: list[int] = field(default_factory=list)
    program_closed: threading.Event = field(default_factory=threading.Event)
    device_closed: bool = False
    submitted: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def let(self, batches: int = 1) -> None:
        for _ in range(batches):
            self.gate.release()

    def open_gate(self) -> None:
        self.held = False
        self.gate.release(1000)

    async def seen(self) -> None:
        """Wait until one more batch has reached the device."""
        assert await asyncio.to_thread(self.submitted.acquire, timeout=SECONDS), "no batch came"


@dataclass
class StagedPending:
    stage: Stage
    outcome: Result
    error: Exception | None
    ready: bool

    def result(self) -> Result:
        if not self.ready:
            assert self.stage.gate.acquire(timeout=SECONDS)
        if self.error is not None:
            raise self.error
        return self.outcome


@dataclass
class StagedProgram:
    """A real program of the CPU backend, under the control of a stage."""

    program: Program
    stage: Stage
    number: int
    asynchronous: bool

    @property
    def inputs(self) -> Mapping[str, ValueType]:
        return self.program.inputs

    @property
    def outputs(self) -> Mapping[str, ValueType]:
        return self.program.outputs

    @property
    def capacity(self) -> int:
        return self.program.capacity

    @property
    def memory_bytes(self) -> int:
        return self.program.memory_bytes

    @property
    def builds(self) -> Mapping[str, int]:
        return {**self.program.builds, **self.stage.growth}

    def submit(self, *batches: Batch) -> Pending:
        stage, held, batch = self.stage, self.stage.held, collate(batches)
        stage.threads.add(threading.get_ident())
        stage.costs.append(cost(batch))
        stage.submitted.release()
        if held and not self.asynchronous:
            assert stage.gate.acquire(timeout=SECONDS)
        if (error := stage.fault(batch)) is not None:
            raise error
        result = self.program.submit(batch).result()
        result = replace(result, busy_seconds=stage.busy(cost(batch)))
        return StagedPending(stage, result, stage.late_fault(batch), ready=not (held and self.asynchronous))

    def close(self) -> None:
        self.program.close()
        self.stage.closed.append(self.number)
        self.stage.program_closed.set()


class StagedBackend:
    """The CPU backend with programs under control; with a uuid it is taken for a GPU, which computes after submit."""

    def __init__(self, stage: Stage, uuid: str | None = None, index: int = 0) -> None:
        self.stage, self.device = stage, DeviceInfo(index, "staged", uuid, 0)
        stage.threads.add(threading.get_ident())

    def compile(self, graph: Graph, weights: Weights, options: Options) -> Program:
        self.stage.programs += 1
        program = CpuBackend().compile(graph, weights, options)
        return StagedProgram(program, self.stage, self.stage.programs, self.device.uuid is not None)

    def close(self) -> None:
        self.stage.threads.add(threading.get_ident())
        self.stage.device_closed = True


def make_engine(
    repository: Path, stage: Stage | None = None, *, gpu: bool = False, control: Any = "explicit", **options: Any
) -> Engine:
    """An engine on the real CPU backend, or on a staged device."""
    config = EngineConfig(repository, "cpu", control, cpu_threads=1, startup=options.pop("startup", None))
    if stage is None:
        return Engine(config, Metrics(), **options)
    return Engine(
        config, Metrics(), open_device=lambda kind, index: StagedBackend(stage, "GPU-0" if gpu else None), **options
    )


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    """The value of a series, None if there is no such series."""
    return metrics.registry.get_sample_value(name, labels)


@asynccontextmanager
async def running(repository: Path, stage: Stage | None = None, **options: Any) -> AsyncIterator[Engine]:
    """An engine that has started, and stops in the end."""
    engine = make_engine(repository, stage, **options)
    await engine.start()
    try:
        async with asyncio.timeout(SECONDS):
            yield engine
    finally:
        if stage is not None:
            stage.open_gate()
        await engine.stop(SECONDS)


def states(engine: Engine) -> dict[tuple[str, str], str]:
    """The state of every version of every model."""
    return {(entry.name, entry.version): entry.state for entry in engine.index()}


async def scores(engine: Engine, name: str = "m", version: str | None = None) -> torch.Tensor:
    """What a model answers to one row."""
    return (await engine.infer(engine.get(name, version), rows())).values["scores"].data


def expected(folder: Path) -> torch.Tensor:
    """What the model in a folder should answer to it."""
    return alone(folder, rows())["scores"].data
