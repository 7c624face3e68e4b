"""One batch in flight: its inputs and outputs on both sides, and the captured graph between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from lacuna_kernels.cuda.arena import BufferSpec
from lacuna_kernels.cuda.blueprint import Blueprint
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.steps import HEADER, ITEMS, OVERFLOW, STATUS, Step, sites_name
from lacuna_kernels.cuda.tile_counters import TileCounter
from lacuna_kernels.types import Axis, Batch, Value, ValueType


class Slot:
    """Staging memory that the host can reach, its twin on the device, and the launches that read and write the twin.

    Site values are fetched without staging, since how many there are is known only afterwards.
    """

    def __init__(self, device: Device, blueprint: Blueprint) -> None:
        self._device, self._blueprint = device, blueprint
        self._types, self._results = blueprint.types, blueprint.results
        specs = blueprint.own
        place = f"cuda:{device.index}"
        self.here = {name: torch.zeros(spec.shape, dtype=spec.dtype, device=place) for name, spec in specs.items()}
        self.host = {name: _pinned(spec) for name, spec in specs.items() if name not in blueprint.unstaged}
        self._graph = torch.cuda.CUDAGraph()
        self._sent, self._began, self._ended, self._back = (_event() for _ in range(4))
        self.buffers: Mapping[str, Tensor] = {}
        self._counter: TileCounter | None = None  # of the captured launches
        self.bytes = sum(tensor.nbytes for tensor in self.here.values())

    def capture(self, steps: Sequence[Step], shared: Mapping[str, Tensor]) -> None:
        """Run the steps once, so that all is loaded, then record them; on the current stream, on an empty batch."""
        self.bind(shared)
        stream = torch.cuda.current_stream()
        _run(steps, self.buffers)
        stream.synchronize()
        self._counter = self._device.new_tile_counter()
        with self._device.counting_by(self._counter):
            self._record(steps)
        self._graph.replay()
        stream.synchronize()

    def bind(self, shared: Mapping[str, Tensor]) -> None:
        """Let steps find this batch's buffers beside those that are shared, which are kept as long as it may be run."""
        header = self._blueprint.header.views(self.here[HEADER])
        status = self._blueprint.status.views(self.here[STATUS])
        self.buffers = {**shared, **self.here, **header, **status}

    def _record(self, steps: Sequence[Step]) -> None:
        self._graph.capture_begin(capture_error_mode="thread_local")
        try:
            _run(steps, self.buffers)
        except BaseException:
            with suppress(RuntimeError):
                self._graph.capture_end()
            raise
        self._graph.capture_end()

    def send(self, batch: Batch) -> None:
        """Copy a batch over, run it, and copy back what can be: the outputs whose sizes are known by now."""
        device = self._device
        with torch.cuda.stream(device.upload):
            self.load(batch)
            self._sent.record()
        with torch.cuda.stream(device.stream):
            device.stream.wait_event(self._sent)
            self._began.record()
            self._graph.replay()
            self._ended.record()
        with torch.cuda.stream(device.download):
            device.download.wait_event(self._ended)
            self.host[STATUS].copy_(self.here[STATUS], non_blocking=True)
            for name, buffer in self._results.items():
                if buffer in self.host:
                    _copy_rows(self.host[buffer], self.here[buffer], _rows(self._types[name], batch))
            self._back.record()

    def load(self, batch: Batch) -> None:
        """Copy a batch over, on the current stream."""
        self._fill_header(batch)
        for name, value in batch.items():
            self.host[name][: len(value.data)].copy_(value.data)
        self.here[HEADER].copy_(self.host[HEADER], non_blocking=True)
        for name, value in batch.items():
            _copy_rows(self.here[name], self.host[name], len(value.data))

    def _fill_header(self, batch: Batch) -> None:
        parts = self._blueprint.header.views(self.host[HEADER])
        parts[ITEMS][0] = next(iter(batch.values())).items
        for name, value in batch.items():
            if value.offsets is not None:
                parts[f"{name}:count"][0] = len(value.data)
                offsets = parts[f"{name}:offsets"]
                offsets[: len(value.offsets)] = value.offsets
                offsets[len(value.offsets) :] = len(value.data)

    def wait(self) -> None:
        """Wait until the outputs are back."""
        self._back.synchronize()

    @property
    def busy_seconds(self) -> float:
        """How long the device computed."""
        return float(self._began.elapsed_time(self._ended)) / 1000

    @property
    def overflowed(self) -> bool:
        """Whether some level had more sites than there was room for."""
        return bool(self._returned(OVERFLOW))

    def _returned(self, name: str) -> int:
        return int(self._blueprint.status.views(self.host[STATUS])[name])

    def receive(self, batch: Batch) -> dict[str, Value]:
        """Return the outputs in memory of their own."""
        return {name: self._value(name, buffer, batch) for name, buffer in self._results.items()}

    def _value(self, name: str, buffer: str, batch: Batch) -> Value:
        kind = self._types[name]
        if kind.level is None:
            offsets = batch[kind.points].offsets if kind.axis is Axis.POINT and kind.points is not None else None
            return Value(self.host[buffer][: _rows(kind, batch)].clone(), offsets)
        count = self._returned(sites_name(kind.level, "count"))
        items = next(iter(batch.values())).items
        with torch.cuda.stream(self._device.download):
            data = self.here[buffer][:count].cpu()
            offsets = self.here[sites_name(kind.level, "offsets")][: items + 1].cpu().long()
            return Value(data, offsets, self.here[sites_name(kind.level, "coordinates")][:count].cpu())

    def close(self) -> None:
        """Give the memory back, whoever still holds a batch of it."""
        self._graph.reset()
        self.buffers, self.here, self.host = {}, {}, {}
        self._counter = None


def _run(steps: Sequence[Step], buffers: Mapping[str, Tensor]) -> None:
    for step in steps:
        step.run(buffers)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _pinned(spec: BufferSpec) -> Tensor:
    return torch.zeros(spec.shape, dtype=spec.dtype, pin_memory=True)


def _copy_rows(target: Tensor, source: Tensor, rows: int) -> None:
    if rows:
        target[:rows].copy_(source[:rows], non_blocking=True)


def _rows(kind: ValueType, batch: Batch) -> int:
    """Rows of an output whose number follows from the inputs."""
    if kind.axis is Axis.POINT:
        assert kind.points is not None
        return len(batch[kind.points].data)
    return next(iter(batch.values())).items
