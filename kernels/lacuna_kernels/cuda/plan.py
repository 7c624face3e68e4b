"""A network in device memory for batches of bounded size: buffers, captured launches, and batches in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lacuna_kernels.cuda.blueprint import Blueprint
from lacuna_kernels.cuda.capacity import Capacity
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.profile import profile
from lacuna_kernels.cuda.slot import Slot
from lacuna_kernels.program import Result
from lacuna_kernels.types import Batch

IN_FLIGHT = 2


@dataclass(frozen=True, slots=True)
class Overflow:
    """A batch had more sites than the plan has room for: its outputs are void."""


class Plan:
    """One blueprint with its memory, and a captured graph for each of the batches that may be in flight."""

    def __init__(self, device: Device, blueprint: Blueprint) -> None:
        """Allocate, warm up and capture on the current stream, which must be one of the device's own."""
        self.room = blueprint.room
        self.memory = torch.empty(blueprint.shared_bytes, dtype=torch.uint8, device=f"cuda:{device.index}")
        shared = blueprint.views(self.memory)
        slots = [Slot(device, blueprint) for _ in range(IN_FLIGHT)]
        for slot in slots:
            slot.capture(blueprint.steps, shared)
        self._seats = deque(map(_Seat, slots))
        self._steps = blueprint.steps
        self.bytes = self.memory.nbytes + sum(slot.bytes for slot in slots)

    def start(self, batch: Batch, joined: Sequence[Batch]) -> Running:
        """Send a batch to the device and start it; the oldest batch is finished first if too many are in flight.

        The device's stream must be current.

        joined  batches that it is the outline of
        """
        seat = self._seats[0]
        if seat.running is not None:
            seat.running.settle()
        seat.slot.send(batch, joined)
        seat.running = Running(self.room, seat, batch, joined)
        self._seats.rotate(-1)
        return seat.running

    def retire(self) -> None:
        """Wait until the device writes here no longer: then the memory may go, once nobody waits for a batch in it.

        Nothing may be started any more.
        """
        for seat in self._seats:
            seat.slot.wait()
            seat.running = None

    def profile(self) -> list[tuple[str, float]]:
        """Return (name, seconds) of every step, on what the last batch but one left in its inputs."""
        return profile(self._steps, self._seats[0].slot.buffers)

    def close(self) -> None:
        """Give the memory back; nothing may be running."""
        for seat in self._seats:
            seat.slot.close()


@dataclass(slots=True)
class _Seat:
    """A slot, and the batch whose outputs have to be taken out of it before the next is sent, if there is one.

    So that batch's memory is kept while the device may write there, even if nobody waits for it any more.
    """

    slot: Slot
    running: Running | None = None


class Running:
    """A batch on the device, on a plan with this room, and those that it is joined of, which it keeps."""

    def __init__(self, room: Capacity, seat: _Seat, batch: Batch, joined: Sequence[Batch]) -> None:
        self.room, self.batch, self.joined = room, batch, joined
        self._seat = seat
        self._outcome: Result | Overflow | Exception | None = None

    def wait(self) -> None:
        """Wait until the device is done with it; any thread may, without a lock."""
        if self._outcome is None:
            self._seat.slot.wait()

    def finish(self) -> Result | Overflow:
        """Wait for the outputs; under the device's lock."""
        outcome = self.settle()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def settle(self) -> Result | Overflow | Exception:
        """Wait and take the outputs off the device, once; under the device's lock. What goes wrong is this batch's."""
        if self._outcome is None:
            try:
                self._outcome = self._taken(self._seat.slot)
            except Exception as error:
                self._outcome = error
            self._seat.running = None
        return self._outcome

    def _taken(self, slot: Slot) -> Result | Overflow:
        slot.wait()
        return Overflow() if slot.overflowed else Result(slot.receive(self.batch), slot.busy_seconds)
