"""The contract between a backend, which compiles networks, and whoever runs them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lacuna_kernels.graph import Graph, Precision
from lacuna_kernels.model import Weights
from lacuna_kernels.types import Batch, Value, ValueType


@dataclass(frozen=True, slots=True)
class Options:
    """How a network is compiled.

    precision     of every node that does not ask for another
    max_cost      the largest batch that may ever be run, in rows, points or edges; more is CapacityExceeded
    initial_cost  points that the first plan has room for; plans for rows grow from one
    """

    precision: Precision = Precision.FP32
    max_cost: int = 1 << 20
    initial_cost: int = 1


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What a network takes on a GPU.

    weights  bytes that all plans share
    plans    (cost, bytes) of plans with room for batches of these costs
    """

    weights: int
    plans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What a batch gave: the outputs by name, on the CPU, and how long the device was busy with it.

    A GPU's outputs lie in pinned memory, so whoever collects those of many batches copies them.
    """

    values: dict[str, Value]
    busy_seconds: float


class Pending(Protocol):
    """A batch under way."""

    def result(self) -> Result:
        """Wait for the outputs, once, on any thread; raises DeviceOutOfMemory or DeviceError."""
        ...


class Program(Protocol):
    """A compiled network on one device; used by one thread at a time."""

    @property
    def inputs(self) -> Mapping[str, ValueType]:
        """Types of the inputs."""
        ...

    @property
    def outputs(self) -> Mapping[str, ValueType]:
        """Types of the outputs."""
        ...

    @property
    def capacity(self) -> int:
        """The largest batch, in rows or points, that a plan exists for; it grows on demand up to max_cost."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Device memory held: weights and the buffers of all plans."""
        ...

    @property
    def builds(self) -> Mapping[str, int]:
        """Plans built so far, by reason: load, growth."""
        ...

    def submit(self, *batches: Batch) -> Pending:
        """Start checked batches of CPU tensors as one, in order, so that nobody has to join them before they travel.

        Raises CapacityExceeded, DeviceOutOfMemory or DeviceError. The tensors must stay as they are until the result is
        there: a GPU reads those in pinned memory where they lie.
        """
        ...

    def close(self) -> None:
        """Give the device's memory back; nothing may be pending."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device for people and metrics: uuid as NVML has it, None for a CPU."""

    index: int
    name: str
    uuid: str | None
    memory_bytes: int


class Backend(Protocol):
    """A device that networks are compiled for; opened and closed on the thread that owns it."""

    @property
    def device(self) -> DeviceInfo:
        """Which device this is."""
        ...

    def compile(self, graph: Graph, weights: Weights, options: Options) -> Program:
        """Compile a network, build its first plan and warm it up; raises ModelError or DeviceOutOfMemory.

        May be called from a builder thread while programs of this backend run.
        """
        ...

    def close(self) -> None:
        """Close the device; all programs must be closed."""
        ...


@dataclass(frozen=True, slots=True)
class TunedGroup:
    """Some sparse convolutions of a network for which the same kernel is best, on plans of one size.

    points      that the plans have room for
    name        kind of map, offsets, channels, stride
    layers      how many of them the network has
    rule, best  what one of them takes by the kernel that follows from rules, and by the best: seconds or joules
    kernel      name of the best
    """

    points: int
    name: str
    layers: int
    rule: float
    best: float
    kernel: str


@dataclass(frozen=True, slots=True)
class Tuning:
    """What tuning gave: where the table lies, and what it is worth for sparse convolutions, in the network's order."""

    path: Path
    groups: Sequence[TunedGroup] = ()
