"""Everything about a plan that needs no memory yet: its steps, its buffers and where they lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lacuna_kernels.cuda import linear_runs
from lacuna_kernels.cuda.arena import BufferSpec, Layout, Use, arrange, views
from lacuna_kernels.cuda.capacity import Capacity
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.fusion import Layer, Part, joins
from lacuna_kernels.cuda.lowering import lowering
from lacuna_kernels.cuda.steps import (
    HEADER,
    ITEMS,
    OVERFLOW,
    STATUS,
    Buffers,
    Step,
    Weights,
    Writer,
    levels_of,
    sites_name,
)
from lacuna_kernels.cuda.tile_table import Group
from lacuna_kernels.cuda.tuned import Tuned
from lacuna_kernels.graph import Graph
from lacuna_kernels.types import Level, ValueType

Array = TypeVar("Array", Tensor, NDArray[np.int32])


@dataclass(frozen=True, slots=True)
class Vector:
    """Small int32 buffers side by side in one, so that they travel in one copy.

    parts  by buffer name, its start and length
    """

    parts: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> "Vector":
        """Put buffers of these lengths side by side."""
        parts, start = {}, 0
        for name, size in sizes.items():
            parts[name] = (start, size)
            start += size
        return cls(parts)

    @property
    def spec(self) -> BufferSpec:
        """The whole."""
        return BufferSpec((sum(length for _, length in self.parts.values()),), torch.int32)

    def views(self, whole: Array) -> dict[str, Array]:
        """The parts of the whole."""
        return {name: whole[start : start + length] for name, (start, length) in self.parts.items()}


def header(graph: Graph, items: int) -> Vector:
    """What goes to the device with every batch: `items:count`, and `<input>:count`, `<input>:offsets` if ragged."""
    sizes = {ITEMS: 1}
    for name, kind in graph.input_value_types.items():
        if kind.axis.ragged:
            sizes |= {f"{name}:count": 1, f"{name}:offsets": items + 1}
    return Vector.of(sizes)


def status(levels: Sequence[Level]) -> Vector:
    """What comes back with every batch: the overflow flag, then the number of sites of every level."""
    return Vector.of({OVERFLOW: 1} | {sites_name(level, "count"): 1 for level in levels})


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What to launch and where things lie.

    types            of the network's values
    inputs, outputs  buffers that hold what comes from and goes to the host; each batch in flight has its own
    unstaged         those outputs whose size is known afterwards only: sites
    results          by name of an output, the buffer that holds it
    arena            where all other buffers lie, in memory that every batch uses
    parts            values that lie in others
    convolutions     by name of its step, what the tile of a sparse convolution is chosen by
    """

    room: Capacity
    types: Mapping[str, ValueType]
    steps: Sequence[Step]
    inputs: Mapping[str, BufferSpec]
    outputs: Mapping[str, BufferSpec]
    unstaged: frozenset[str]
    results: Mapping[str, str]
    header: Vector
    status: Vector
    arena: Layout
    uses: Sequence[Use]
    parts: Mapping[str, Part]
    convolutions: Mapping[str, Group]

    @property
    def own(self) -> dict[str, BufferSpec]:
        """Buffers that each batch in flight has of its own."""
        return {**self.inputs, **self.outputs, HEADER: self.header.spec, STATUS: self.status.spec}

    @property
    def shared_bytes(self) -> int:
        """Memory that every batch uses; never 0, so that it has an address."""
        return max(1, self.arena.bytes)

    def views(self, memory: Tensor) -> dict[str, Tensor]:
        """Cut the arena's memory, uint8 [shared_bytes], into buffers."""
        whole = views(self.arena, self.uses, memory)
        return whole | {name: whole[p.whole][:, p.start : p.start + p.width] for name, p in self.parts.items()}


def draw(
    device: Device,
    graph: Graph,
    layers: Sequence[Layer],
    weights: Weights,
    room: Capacity,
    tuned: Tuned | None = None,
) -> Blueprint:
    """Write the steps of a network for a capacity, and place their buffers; what was measured chooses kernels."""
    parts, coming = joins(graph, layers), status(levels_of(graph.types))
    going, writer = header(graph, room.items), Writer(device, graph.types, weights, room, layers, parts, tuned)
    inputs = _write(writer, graph, layers, coming)
    results = {name: _result(writer, name, kind) for name, kind in graph.output_types.items()}
    outputs, unstaged = _outputs(writer, graph, results)
    outside = {*inputs, *outputs, *going.parts, *coming.parts, STATUS}
    uses = [_inside(step.use, outside) for step in writer.steps]
    return Blueprint(
        room=room,
        types=graph.types,
        steps=writer.steps,
        inputs=inputs,
        outputs=outputs,
        unstaged=unstaged,
        results=results,
        header=going,
        status=coming,
        arena=arrange(uses),
        uses=uses,
        parts=parts,
        convolutions=writer.convolutions,
    )


def _write(writer: Writer, graph: Graph, layers: Sequence[Layer], coming: Vector) -> dict[str, BufferSpec]:
    """Write the steps of all layers; returns the buffers of the inputs."""
    inputs = {name: writer.spec(name, kind.dtype.torch) for name, kind in graph.input_value_types.items()}
    writer.dtypes.update({name: spec.dtype for name, spec in inputs.items()})
    if levels_of(graph.types):  # or else nobody changes it
        writer.add("begin", [], {STATUS: coming.spec}, _begin)
    for part in linear_runs.runs(writer, graph, layers):
        if isinstance(part, linear_runs.Run):
            linear_runs.write(writer, part)
        else:
            lowering(graph, part.node)(writer, part)
    writer.join()
    return inputs


def _outputs(writer: Writer, graph: Graph, results: Mapping[str, str]) -> tuple[dict[str, BufferSpec], frozenset[str]]:
    """The buffers that go to the host, and which of them are of sites."""
    outputs = {buffer: writer.spec(name, writer.dtypes[buffer]) for name, buffer in results.items()}
    unstaged = {results[name] for name, kind in graph.output_types.items() if kind.level is not None}
    for kind in graph.output_types.values():
        if kind.level is not None:
            places = _places(writer, kind.level)
            outputs |= places
            unstaged.update(places)
    return outputs, frozenset(unstaged)


def _begin(buffers: Buffers) -> None:
    buffers[STATUS].zero_()


def _result(writer: Writer, name: str, kind: ValueType) -> str:
    """Buffer with an output, fp32 if it is of floating point."""
    return writer.converted(name, torch.float32) if kind.dtype.is_float else name


def _places(writer: Writer, level: Level) -> dict[str, BufferSpec]:
    """Buffers that say where the sites of an output lie."""
    return {
        sites_name(level, "coordinates"): BufferSpec((writer.room.sites(level), 4), torch.int32),
        sites_name(level, "offsets"): BufferSpec((writer.room.items + 1,), torch.int32),
    }


def _inside(use: Use, outside: set[str]) -> Use:
    return Use(use.reads, {name: spec for name, spec in use.writes.items() if name not in outside})
