"""The CUDA backend: programs whose plans grow on a builder thread while others run."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar
from weakref import WeakSet

import torch

from lacuna_kernels.cuda.blueprint import draw
from lacuna_kernels.cuda.capacity import Capacity, Sizes
from lacuna_kernels.cuda.copies import PIECE_BYTES
from lacuna_kernels.cuda.dense_steps import LINEAR, problems_of
from lacuna_kernels.cuda.device import Device, DeviceLimits, device_errors
from lacuna_kernels.cuda.fusion import Layer, fuse
from lacuna_kernels.cuda.kronecker.choose import Stage
from lacuna_kernels.cuda.linear_runs import spans
from lacuna_kernels.cuda.lowering import check_supported
from lacuna_kernels.cuda.measurement import Objective
from lacuna_kernels.cuda.plan import Overflow, Plan, Running
from lacuna_kernels.cuda.steps import Weights, levels_of
from lacuna_kernels.cuda.tile_tuning import Convolutions, Findings
from lacuna_kernels.cuda.tuned import Tuned, add_to_table, read_table, set_aside
from lacuna_kernels.cuda.tuning import Meter, measure, tasks
from lacuna_kernels.errors import CapacityExceeded
from lacuna_kernels.graph import Graph
from lacuna_kernels.model import Weights as HostWeights
from lacuna_kernels.ops.linear import Linear
from lacuna_kernels.program import DeviceInfo, Options, Result, Tuning
from lacuna_kernels.types import Axis, Batch, ValueType, collate, cost, outline

T = TypeVar("T")
Progress = Callable[[int, int, str], None]


class Builder:
    """The thread that compiles, warms up and captures, on a stream of its own, so that traffic goes on meanwhile."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stream = device.new_stream()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lacuna-builder")

    def run(self, job: Callable[[], T]) -> Future[T]:
        """Run a job after those before it; what torch and PyCUDA raise comes out as our errors."""
        return self._thread.submit(self._on_device, job)

    def _on_device(self, job: Callable[[], T]) -> T:
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with self._device.launching(self._stream), torch.no_grad(), device_errors("building a plan"), exact:
            return job()

    def close(self) -> None:
        """Finish what is under way and stop."""
        self._thread.shutdown()


class CudaProgram:
    """A compiled network: plans by capacity, of which the smallest that has room runs a batch."""

    def __init__(
        self,
        device: Device,
        builder: Builder,
        lock: threading.RLock,
        graph: Graph,
        weights: HostWeights,
        options: Options,
        tuned: Tuned,
    ) -> None:
        check_supported(graph)
        self._tuned = tuned
        self._device, self._builder, self._lock = device, builder, lock
        self._graph, self._options = graph, options
        self._sizes = Sizes.of(graph, options.max_cost)
        self._layers = fuse(graph, weights, options.precision)
        self._weights = Weights(torch.device("cuda", device.index))
        self._plans: list[Plan] = []  # the smallest first
        self._growth = Capacity(1, 1).growth
        self._builds: Counter[str] = Counter()
        first = self._sizes.first(options.initial_cost)
        builder.run(lambda: self._plan_for(first, "load")).result()

    @property
    def inputs(self) -> Mapping[str, ValueType]:
        """Types of the inputs."""
        return self._graph.input_value_types

    @property
    def outputs(self) -> Mapping[str, ValueType]:
        """Types of the outputs."""
        return self._graph.output_types

    @property
    def capacity(self) -> int:
        """The largest batch that a plan exists for."""
        return max((self._sizes.cost(plan.room) for plan in self._plans), default=0)

    @property
    def memory_bytes(self) -> int:
        """Weights, and the buffers of all plans."""
        return self._weights.bytes + sum(plan.bytes for plan in self._plans)

    @property
    def builds(self) -> Mapping[str, int]:
        """Plans built so far, by reason."""
        return dict(self._builds)

    def submit(self, *batches: Batch) -> Pending:
        """Start checked batches as one; if no plan has room for it, it starts by itself as soon as there is one.

        The device reads inputs in pinned memory where they lie: they must stay as they are until the result is there.
        """
        sent = sent_as(batches)
        batch = outline(sent)
        size, items = cost(batch), _items(batch)
        if size > self._options.max_cost:
            raise CapacityExceeded(f"a batch of {size} is over the limit of {self._options.max_cost}")
        with self._lock, device_errors("starting a batch"):
            plan = self._smallest(lambda room: self._sizes.has_room(room, size, items, self._growth))
            if plan is not None:
                with self._device.on_thread(self._device.stream):
                    return Pending(self, plan.start(batch, sent))
        need = self._sizes.capacity(size, items, self._growth)
        return Pending(self, self._builder.run(lambda: self._start_on_new(need, batch, sent)))

    def _smallest(self, fits: Callable[[Capacity], bool]) -> Plan | None:
        return next((plan for plan in self._plans if fits(plan.room)), None)

    def rerun(self, overflowed: Running) -> Future[Running]:
        """Run a batch again with room for twice the sites, and so all batches from now on; raises CapacityExceeded."""
        need = overflowed.room.grown(levels_of(self._graph.types))
        if need is None:
            raise CapacityExceeded("the coordinates of this batch fill the hash tables too unevenly to be found")
        self._growth = max(self._growth, need.growth)
        return self._builder.run(lambda: self._start_on_new(need, overflowed.batch, overflowed.joined))

    def _start_on_new(self, need: Capacity, batch: Batch, joined: Sequence[Batch]) -> Running:
        plan = self._plan_for(need, "growth")
        with self._lock, self._device.on_thread(self._device.stream):
            return plan.start(batch, joined)

    def _plan_for(self, need: Capacity, why: str) -> Plan:
        """Return a plan with room, built if there is none; on the builder's thread."""
        plan = self._smallest(lambda room: room.holds(need))
        if plan is not None:
            return plan
        plan = Plan(self._device, draw(self._device, self._graph, self._layers, self._weights, need, self._tuned))
        replaced = [old for old in self._plans if self._sizes.ragged and need.holds(old.room)]
        with self._lock:
            keep = [old for old in self._plans if old not in replaced]
            self._plans = sorted([*keep, plan], key=lambda plan: _order(plan.room))
            self._builds[why] += 1
        for old in replaced:
            old.retire()
        return plan

    def finish(self, running: Running) -> Result | Overflow:
        """Take a batch's outputs off the device."""
        running.wait()
        with self._lock:
            return running.finish()

    def profile(self) -> list[tuple[str, float]]:
        """Return (name, seconds) of every step of the largest plan; nothing may be pending."""
        plan = max(self._plans, key=lambda plan: self._sizes.cost(plan.room))
        return self._builder.run(plan.profile).result()

    def close(self) -> None:
        """Give the device's memory back; nothing may be pending."""
        self._builder.run(lambda: None).result()
        with self._lock:
            for plan in self._plans:
                plan.close()
            self._plans = []
            self._weights.held.clear()


class Pending:
    """A batch under way, or waiting for a plan with room for it."""

    def __init__(self, program: CudaProgram, running: Running | Future[Running]) -> None:
        self._program, self._running = program, running

    def result(self) -> Result:
        """Wait for the outputs; any thread may, once. Raises DeviceOutOfMemory or DeviceError."""
        with device_errors("running a batch"):
            while True:
                running = self._running.result() if isinstance(self._running, Future) else self._running
                outcome = self._program.finish(running)
                if isinstance(outcome, Result):
                    return outcome
                self._running = self._program.rerun(running)


class CudaBackend:
    """One GPU, opened on the calling thread, which closes it."""

    def __init__(self, index: int = 0, cache: Path | None = None) -> None:
        with device_errors(f"opening GPU {index}"):
            self._device = Device(index, cache)
            try:
                self._builder = Builder(self._device)
            except BaseException:
                self._device.close()
                raise
        self._lock = threading.RLock()
        self._programs: WeakSet[CudaProgram] = WeakSet()
        properties = self._device.properties
        self.device = DeviceInfo(index, properties.name, f"GPU-{properties.uuid}", properties.total_memory)

    def compile(self, graph: Graph, weights: HostWeights, options: Options) -> CudaProgram:
        """Compile a network, build its first plan and warm it up, by the table as it is now; any thread may.

        Raises Unsupported naming the node, DeviceOutOfMemory or DeviceError.
        """
        tuned = read_table(self._device.compiler.cache, self.device.name)
        program = CudaProgram(self._device, self._builder, self._lock, graph, weights, options, tuned)
        self._programs.add(program)
        return program

    def tune(
        self,
        graph: Graph,
        weights: HostWeights,
        options: Options,
        costs: Sequence[int],
        samples: Sequence[Batch],
        objective: Objective,
        meter: Meter | None,
        progress: Progress,
        notice: Callable[[str], None],
    ) -> Tuning:
        """Measure the kernels that fit a network's layers, and keep each measurement in the table.

        costs     batches to measure Kronecker-sparse and dense layers for, in rows or points
        samples   batches to measure sparse convolutions on, each on the plan that it would be served by
        meter     joules that the GPU has used since some moment, for Objective.ENERGY
        progress  called with (done, of all, what comes next)
        notice    called with what somebody should know: that a damaged table was set aside

        Programs compiled from now on use the table. Raises CapacityExceeded if a sample is over `options.max_cost`,
        and DeviceError.
        """
        if larger := [cost(batch) for batch in samples if cost(batch) > options.max_cost]:
            raise CapacityExceeded(f"a sample of {max(larger)} is over the limit of {options.max_cost}")
        layers, limits = fuse(graph, weights, options.precision), self._device.limits
        todo, place = _linear_tasks(graph, layers, costs, limits), (self._device.compiler.cache, self.device.name)
        if damaged := set_aside(*place):
            notice(f"what lay there was no table of measurements: it is {damaged} now, and a new one is begun")
        path = add_to_table(*place, [])  # what cannot be kept is not measured
        convolutions = Convolutions(self._device, graph, layers, Weights(torch.device("cuda", self._device.index)))
        scans = [self._built(partial(convolutions.scan, _served(graph, options, each), each)) for each in samples]
        total, done = len(todo) + sum(scan.trials(limits) for scan in scans), count()
        for stages in todo:
            progress(next(done), total, str(stages[0]))
            add_to_table(*place, [self._built(partial(measure, self._device, stages, objective, meter))])
        findings = Findings(objective)
        for scan in scans:
            for trial in self._stepwise(convolutions.trials(scan)):
                progress(next(done), total, str(trial))
                findings.add(trial, self._built(partial(trial.measure, findings.meter(meter))))
            add_to_table(*place, list(findings.entries.values()))
        progress(total, total, "")
        return Tuning(path, findings.summary(scans))

    def _built(self, job: Callable[[], T]) -> T:
        """What a job gives on the builder's thread."""
        return self._builder.run(job).result()

    def _stepwise(self, items: Iterator[T]) -> Iterator[T]:
        """What an iterator gives that goes on on the builder's thread."""
        while (item := self._built(partial(next, items, None))) is not None:
            yield item

    def close(self) -> None:
        """Close the programs that are still open, then the device."""
        try:
            for program in list(self._programs):
                program.close()
        finally:
            self._builder.close()
            self._device.close()


def _linear_tasks(
    graph: Graph, layers: Sequence[Layer], costs: Sequence[int], limits: DeviceLimits
) -> list[list[Stage]]:
    """What competes with each other for the linear layers of a network, for batches of these costs."""
    sizes = Sizes.of(graph, max(costs))
    rooms = [sizes.capacity(cost, 1 if sizes.ragged else cost) for cost in costs]
    linear = [layer for layer in layers if isinstance(layer.node, LINEAR) and not _may_be_convolution(graph, layer)]
    chains = [problems_of(layer, graph.types[layer.output], room) for room in rooms for layer in linear]
    runs = [problems for room in rooms for problems in spans(graph, layers, room, limits)]
    return list(tasks(chains, runs, limits))


def _may_be_convolution(graph: Graph, layer: Layer) -> bool:
    """Whether it is a dense layer on sites, which takes a tile of a convolution where there is one for it."""
    return isinstance(layer.node, Linear) and graph.types[layer.output].axis is Axis.SITE


def _order(room: Capacity) -> tuple[int, int, int]:
    """By what plans are ordered: of those that have room, the first is taken."""
    return room.points, room.items, room.growth


def _served(graph: Graph, options: Options, batch: Batch) -> Capacity:
    """The room of the plan that a batch is served by."""
    return Sizes.of(graph, options.max_cost).served(cost(batch), _items(batch), options.initial_cost)


def sent_as(batches: Sequence[Batch]) -> Sequence[Batch]:
    """Batches that run as one, as they travel: small ones joined, which takes less than to send each by itself."""
    if len(batches) == 1:
        return batches
    size = sum(value.data.nbytes for batch in batches for value in batch.values())
    return [collate(batches)] if size < len(batches) * PIECE_BYTES else batches


def _items(batch: Batch) -> int:
    return next((value.items for value in batch.values()), 0)
