"""A network in device memory for batches of bounded size: buffers, captured launches, and batches in flight."""

from __future__ import annotations

from collections import deque
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
        self._slots = deque(Slot(device, blueprint) for _ in range(IN_FLIGHT))
        self._running: deque[Running] = deque()
        for slot in self._slots:
            slot.capture(blueprint.steps, shared)
        self._steps = blueprint.steps
        self.bytes = self.memory.nbytes + sum(slot.bytes for slot in self._slots)

    def start(self, batch: Batch) -> Running:
        """Send a batch to the device and start it; the oldest batch is finished first if too many are in flight."""
        if len(self._running) == IN_FLIGHT:
            self._running.popleft().finish()
        slot = self._slots[0]
        slot.send(batch)
        self._slots.rotate(-1)  # not if it fails: the next slot may still be in use
        self._running.append(Running(self.room, slot, batch))
        return self._running[-1]

    def profile(self) -> list[tuple[str, float]]:
        """Return (name, seconds) of every step, on what the last batch but one left in its inputs."""
        return profile(self._steps, self._slots[0].buffers)

    def close(self) -> None:
        """Give the memory back; nothing may be running."""
        for slot in self._slots:
            slot.close()


class Running:
    """A batch on the device, on a plan with this room; it keeps the memory that it needs alive."""

    def __init__(self, room: Capacity, slot: Slot, batch: Batch) -> None:
        self.room, self.batch = room, batch
        self._slot = slot
        self._outcome: Result | Overflow | None = None

    def wait(self) -> None:
        """Wait until the device is done with it; any thread may, without a lock."""
        if self._outcome is None:
            self._slot.wait()

    def finish(self) -> Result | Overflow:
        """Wait and take the outputs off the device, once; under the device's lock."""
        if self._outcome is None:
            self._slot.wait()
            if self._slot.overflowed:
                self._outcome = Overflow()
            else:
                self._outcome = Result(self._slot.receive(self.batch), self._slot.busy_seconds)
        return self._outcome
