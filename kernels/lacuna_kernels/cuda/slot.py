"""One batch in flight: its inputs and outputs on both sides, and the captured graph between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from lacuna_kernels.cuda.arena import BufferSpec
from lacuna_kernels.cuda.blueprint import Blueprint
from lacuna_kernels.cuda.copies import copy, copy_staged
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.steps import HEADER, ITEMS, OVERFLOW, STATUS, Step, sites_name
from lacuna_kernels.cuda.tile_counters import TileCounter
from lacuna_kernels.types import Axis, Batch, Value, ValueType


class Slot:
    """A batch's buffers on the device, what travels to and from them, and the launches that read and write them.

    Outputs arrive in pinned memory of their own, which is the caller's. Those of sites are fetched when the batch is
    done, since how many there are is known only then.
    """

    def __init__(self, device: Device, blueprint: Blueprint) -> None:
        self._device, self._blueprint = device, blueprint
        self._types, self._results = blueprint.types, blueprint.results
        specs = blueprint.own
        place = f"cuda:{device.index}"
        self.here = {name: torch.zeros(spec.shape, dtype=spec.dtype, device=place) for name, spec in specs.items()}
        self.host = {name: _pinned(specs[name]) for name in (*blueprint.inputs, HEADER, STATUS)}
        self._header = blueprint.header.views(self.host[HEADER].numpy())
        self._status = blueprint.status.views(self.host[STATUS].numpy())
        self._graph = torch.cuda.CUDAGraph()
        self._sent, self._back = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]
        # The first is recorded by the graph, so that the host has one thing less to do.
        self._began = torch.cuda.Event(enable_timing=True, external=True)  # type: ignore[no-untyped-call]
        self._ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._outputs: dict[str, Tensor] = {}  # of the batch in flight, kept even if nobody waits for it
        self.buffers: Mapping[str, Tensor] = {}
        self._counter: TileCounter | None = None  # of the captured launches
        self.bytes = sum(tensor.nbytes for tensor in self.here.values())

    def capture(self, steps: Sequence[Step], shared: Mapping[str, Tensor]) -> None:
        """Run the steps once, so that all is loaded, then record them; on the current stream, on an empty batch."""
        self.bind(shared)
        stream = torch.cuda.current_stream()
        self.run(steps)
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

    def run(self, steps: Sequence[Step]) -> None:
        """Run steps on the current stream; if one fails, what runs beside them still comes before what follows."""
        try:
            for step in steps:
                step.run(self.buffers)
        except BaseException:
            with suppress(RuntimeError):
                self._device.end_beside()
            raise

    def _record(self, steps: Sequence[Step]) -> None:
        """The launches, between the small copies that are of the same size for every batch."""
        stream = torch.cuda.current_stream()
        self._graph.capture_begin(capture_error_mode="thread_local")
        try:
            self._began.record(stream)
            copy(self.here[HEADER], self.host[HEADER], stream)
            self.run(steps)
            copy(self.host[STATUS], self.here[STATUS], stream)
        except BaseException:
            with suppress(RuntimeError):
                self._graph.capture_end()
            raise
        self._graph.capture_end()

    def send(self, batch: Batch, joined: Sequence[Batch]) -> None:
        """Copy a batch over, run it, and copy back what can be: the outputs whose sizes are known by now.

        The device's stream must be current, and the batch's memory stay as it is until the outputs are back.

        joined  the batches that it is made of, whose data lie one after another on the device
        """
        device = self._device
        self._send_inputs(joined, device.upload)
        self._sent.record(device.upload)
        self._fill_header(batch)  # beside the upload, like the next
        self._outputs = {  # before the launch, so that its failure leaves nothing half done
            name: self._pinned_rows(buffer, _rows(self._types[name], batch))
            for name, buffer in self._results.items()
            if buffer not in self._blueprint.unstaged
        }
        device.stream.wait_event(self._sent)
        self._graph.replay()
        self._ended.record(device.stream)
        device.download.wait_event(self._ended)
        for name, data in self._outputs.items():
            copy(data, self.here[self._results[name]], device.download)
        self._back.record(device.download)

    def load(self, batch: Batch, stream: torch.cuda.Stream) -> None:
        """Copy a batch and its header over, for steps that are run without the graph."""
        self._send_inputs([batch], stream)
        self._fill_header(batch)
        copy(self.here[HEADER], self.host[HEADER], stream)

    def _send_inputs(self, batches: Sequence[Batch], stream: torch.cuda.Stream) -> None:
        """What is pinned as it lies, the rest by way of the slot's own pinned memory."""
        for name in batches[0]:
            start = 0
            for data in (batch[name].data.contiguous() for batch in batches):
                here, way = (place[start:] if start else place for place in (self.here[name], self.host[name]))
                assert data.dtype is here.dtype, f"input {name!r} has type {data.dtype}, it must be {here.dtype}"
                if data.is_pinned():
                    copy(here, data, stream)
                else:
                    copy_staged(here, data, way, stream)
                start += data.shape[0]

    def _fill_header(self, batch: Batch) -> None:
        parts = self._header
        parts[ITEMS][0] = items = next(iter(batch.values())).items
        for name, value in batch.items():
            if value.offsets is not None:
                given, offsets = value.offsets.tolist(), parts[f"{name}:offsets"]
                offsets[: items + 1] = given
                offsets[items + 1 :] = given[items]
                parts[f"{name}:count"][0] = given[items]

    def _pinned_rows(self, buffer: str, rows: int) -> Tensor:
        """Pinned memory for so many rows of a buffer; in the steady state torch has some that others gave back.

        Torch may ask whether the current stream is captured, which the default one must not be asked while another is.
        """
        here = self.here[buffer]
        return torch.empty((rows, *here.shape[1:]), dtype=here.dtype, pin_memory=True)

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
        return bool(self._status[OVERFLOW][0])

    def receive(self, batch: Batch) -> dict[str, Value]:
        """Hand over the outputs of a batch that is done."""
        known, self._outputs = self._outputs, {}
        sites = self._fetched(batch) if len(known) < len(self._results) else {}
        return {
            name: sites[name] if name in sites else _known(self._types[name], known[name], batch)
            for name in self._results
        }

    def _fetched(self, batch: Batch) -> dict[str, Value]:
        """The outputs of sites."""
        device, items = self._device, next(iter(batch.values())).items
        with device.on_thread(device.stream):
            names = [name for name, buffer in self._results.items() if buffer in self._blueprint.unstaged]
            rooms = {name: self._room_for_sites(name, items) for name in names}
            for room in rooms.values():
                for buffer, data in room.items():
                    copy(data, self.here[buffer], device.fetch)
            device.fetch.synchronize()
        return {name: _of_sites(*room.values()) for name, room in rooms.items()}

    def _room_for_sites(self, name: str, items: int) -> dict[str, Tensor]:
        """Where an output of sites goes, by buffer: data, offsets and coordinates."""
        level = self._types[name].level
        assert level is not None
        count = int(self._status[sites_name(level, "count")][0])
        rows = {
            self._results[name]: count,
            sites_name(level, "offsets"): items + 1,
            sites_name(level, "coordinates"): count,
        }
        return {buffer: self._pinned_rows(buffer, number) for buffer, number in rows.items()}

    def close(self) -> None:
        """Give the memory back, whoever still holds a batch of it; what is under way ends first."""
        with suppress(RuntimeError):  # of a device that works no longer, and so writes nowhere
            self._sent.synchronize()
            self._back.synchronize()
        self._graph.reset()
        self.buffers, self.here, self.host = {}, {}, {}
        self._header, self._status, self._outputs = {}, {}, {}
        self._counter = None


def _pinned(spec: BufferSpec) -> Tensor:
    return torch.zeros(spec.shape, dtype=spec.dtype, pin_memory=True)


def _known(kind: ValueType, data: Tensor, batch: Batch) -> Value:
    """An output whose rows follow from the inputs."""
    return Value(data, batch[kind.points].offsets if kind.axis is Axis.POINT and kind.points is not None else None)


def _of_sites(data: Tensor, offsets: Tensor, coordinates: Tensor) -> Value:
    return Value(data, offsets.long(), coordinates)


def _rows(kind: ValueType, batch: Batch) -> int:
    """Rows of an output whose number follows from the inputs."""
    if kind.axis is Axis.POINT:
        assert kind.points is not None
        return batch[kind.points].data.shape[0]
    return next(iter(batch.values())).items
