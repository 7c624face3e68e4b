"""The steps of a plan while they are written down: what each launches, reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from lacuna_kernels.cuda.arena import BufferSpec, Use
from lacuna_kernels.cuda.capacity import Capacity
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.elementwise import elementwise
from lacuna_kernels.cuda.fusion import Layer, Part
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.cuda.tile_table import Group
from lacuna_kernels.cuda.tuned import Tuned
from lacuna_kernels.types import Axis, Level, ValueType

Buffers = Mapping[str, Tensor]
Run = Callable[[Buffers], None]
T = TypeVar("T")

ITEMS = "items:count"
STATUS = "status"
HEADER = "header"
OVERFLOW = "status:overflow"


@dataclass(frozen=True, slots=True)
class Step:
    """Launches that always run together, between others of the current stream: no allocation, no synchronisation."""

    name: str
    use: Use
    run: Run


@dataclass(slots=True)
class Weights:
    """What a program keeps on the device for all of its plans: made once, on first use."""

    place: torch.device
    held: dict[tuple[object, ...], object] = field(default_factory=dict)
    bytes: int = 0

    def get(self, layer: Layer, key: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return one of the layer's weights on the device, in a type."""
        return self.make((layer.output, key, dtype), lambda: self.upload(layer.weights[key], dtype))

    def bias(self, layer: Layer) -> Tensor | None:
        """Return the bias, fp32, or None."""
        return self.get(layer, "bias") if "bias" in layer.weights else None

    def make(self, key: tuple[object, ...], build: Callable[[], T]) -> T:
        """Return what was built under this key, built on first use."""
        if key not in self.held:
            self.held[key] = build()
        return self.held[key]  # type: ignore[return-value]

    def upload(self, weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Copy to the device, contiguous."""
        return self.keep(weight.to(dtype).contiguous().to(self.place))

    def keep(self, on_device: Tensor) -> Tensor:
        """Count the bytes of a tensor that stays on the device."""
        self.bytes += on_device.nbytes
        return on_device


@dataclass(frozen=True, slots=True)
class Work:
    """Launches, what they read and what they write."""

    reads: Sequence[str]
    writes: Mapping[str, BufferSpec]
    run: Run


@dataclass(frozen=True, slots=True)
class Stage:
    """What runs beside steps, after the stages before it: launches, and then others, that the next does not wait for.

    last   what comes after these, and after the steps' own, and is waited for by itself
    tells  what may be read only once the others have ended without being written in this sense: counts
    """

    first: Work
    then: Work
    last: Work | None
    tells: Sequence[str]

    @property
    def works(self) -> list[Work]:
        """All of it, in this order."""
        return [self.first, self.then, *([] if self.last is None else [self.last])]


@dataclass(frozen=True, slots=True)
class _Beside:
    """What runs beside and has not been waited for: its end, the name of that, and what it touches and tells."""

    name: str
    end: Run
    touches: Sequence[str]
    tells: set[str]


class Writer:
    """Writes the steps of one plan, layer by layer; knows the element type of every buffer.

    A value's buffer has its name. The counts of its rows, on the device, are those of its axis (`count_of`).
    `layers` are all of the network, those to come too. `convolutions` are the groups of sparse convolutions, by their
    steps' names, `map_parts` into how many parts the offsets of kernel maps are divided, by the maps' names, and
    `padding` how many zeros follow each row of values that may have some.
    """

    def __init__(
        self,
        device: Device,
        types: Mapping[str, ValueType],
        weights: Weights,
        room: Capacity,
        layers: Sequence[Layer],
        parts: Mapping[str, Part] | None = None,
        tuned: Tuned | None = None,
    ) -> None:
        self.device, self.types, self.weights, self.room, self.layers = device, types, weights, room, layers
        self.tuned = tuned or Tuned()
        self.parts = parts or {}
        self.steps: list[Step] = []
        self.convolutions: dict[str, Group] = {}
        self.map_parts: dict[str, int] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.padding: dict[str, int] = {}
        self.made: set[str] = set()
        self.done: set[str] = set()
        self._beside: list[_Beside] = []

    def add_with(self, name: str, now: Work, stages: Sequence[Stage]) -> None:
        """Append a step, and what runs beside it and those after it, each up to the first that needs it."""
        self.join()
        device, works = self.device, [now, *(work for one in stages for work in one.works)]
        writes = {key: spec for work in works for key, spec in work.writes.items()}
        reads = dict.fromkeys(key for work in works for key in work.reads)

        def run(b: Buffers) -> None:
            launches = [[partial(work.run, b) for work in one.works] for one in stages]
            device.start_beside(launches, partial(now.run, b))

        self.add(name, [key for key in reads if key not in writes], writes, run)
        for at, one in enumerate(stages):
            self._put_beside(f"beside {name}: {at}", _end_of(device, at), [one.first, one.then], one.tells)
            if one.last is not None:
                self._put_beside(f"beside {name}: {at}, last", _end_of(device, at, last=True), [one.last])

    def _put_beside(self, name: str, end: Run, works: Sequence[Work], tells: Sequence[str] = ()) -> None:
        made = {key for work in works for key in work.writes}
        touches = dict.fromkeys(key for work in works for key in (*work.reads, *work.writes))
        if touches:
            self._beside.append(_Beside(name, end, [*touches], made.union(tells)))

    def join(self) -> None:
        """Append the ends of all that runs beside others: until then all it touches is alive."""
        self._join(self._beside)

    def join_before(self, reads: Sequence[str]) -> bool:
        """Append the ends of what any of these is made by; returns whether there was any."""
        needed = [beside for beside in self._beside if not beside.tells.isdisjoint(reads)]
        self._join(needed)
        return bool(needed)

    def _join(self, ended: Sequence[_Beside]) -> None:
        self._beside = [beside for beside in self._beside if beside not in ended]
        for beside in ended:
            self.add(beside.name, beside.touches, {}, beside.end)

    def add(self, name: str, reads: Sequence[str], writes: Mapping[str, BufferSpec], run: Run) -> None:
        """Append a step; what it writes into a part of a wider buffer makes that buffer, or needs it alive."""
        self.join_before(reads)
        self.dtypes.update({key: spec.dtype for key, spec in writes.items()})
        wholes = {
            self.parts[key].whole: self.spec(self.parts[key].whole, self.dtypes[key])
            for key in writes
            if key in self.parts
        }
        made = {key: spec for key, spec in writes.items() if key not in self.parts} | wholes
        new = {key: spec for key, spec in made.items() if key not in self.made}
        self.made.update(new)
        alive = [self.parts[key].whole if key in self.parts else key for key in (*reads, *made)]
        self.steps.append(Step(name, Use(alive, new), run))

    def once(self, name: str) -> bool:
        """Whether this is asked for the first time."""
        first = name not in self.done
        self.done.add(name)
        return first

    def spec(self, name: str, dtype: torch.dtype) -> BufferSpec:
        """Room for a value of the graph."""
        kind = self.types[name]
        return BufferSpec((self.room.of(kind), *kind.shape), dtype)

    def output(self, layer: Layer) -> dict[str, BufferSpec]:
        """Room for a layer's output, in the layer's precision if it is of floating point."""
        kind = self.types[layer.output]
        dtype = DTYPES[layer.precision] if kind.dtype.is_float else kind.dtype.torch
        return {layer.output: self.spec(layer.output, dtype)}

    def level(self, name: str) -> Level:
        """The sites that a value lies on."""
        level = self.types[name].level
        assert level is not None
        return level

    def count_of(self, name: str) -> str:
        """Name of the buffer int32 [1] with the rows in use of a value's first axis."""
        return count_name(self.types[name])

    def converted(self, name: str, dtype: torch.dtype) -> str:
        """Name of a buffer with the value in a type: its own, or one that a step is added for."""
        if self.dtypes[name] is dtype:
            return name
        copy = f"{name}:{dtype}"
        if self.once(copy):
            count, device = self.count_of(name), self.device
            self.add(
                f"convert {name}",
                [name, count],
                {copy: self.spec(name, dtype)},
                lambda b: elementwise(device, flat(b[copy]), flat(b[name]), b[count]),
            )
        return copy


def _end_of(device: Device, stage: int, *, last: bool = False) -> Run:
    """Outside of the writer, which a step must not keep alive."""
    return lambda b: device.end_beside(stage, last=last)


def count_name(kind: ValueType) -> str:
    """Name of the buffer int32 [1] with the rows in use of a type's first axis."""
    if kind.axis is Axis.POINT:
        return f"{kind.points}:count"
    return sites_name(kind.level, "count") if kind.level is not None else ITEMS


def sites_name(level: Level, what: str) -> str:
    """Name of a buffer of a level: count, coordinates, offsets."""
    return f"{level.name}:sites:{what}"


def ints(length: int) -> BufferSpec:
    """Room for int32 numbers."""
    return BufferSpec((length,), torch.int32)


def flat(x: Tensor) -> Tensor:
    """View with one row per entry of the first axis."""
    return x.view(len(x), prod(x.shape[1:]))


def vectors(x: Tensor) -> Tensor:
    """View with one row per feature vector: the tokens of all sequences, else the rows."""
    return x.view(-1, x.shape[-1])


def levels_of(types: Mapping[str, ValueType]) -> list[Level]:
    """The levels of a network, in the order in which they are made."""
    found: dict[str, Level] = {}
    for kind in types.values():
        if kind.level is not None:
            found.setdefault(kind.level.name, kind.level)
    return list(found.values())
