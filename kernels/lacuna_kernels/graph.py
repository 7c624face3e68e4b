"""A network as data: nodes over named values, validated as a whole before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from lacuna_kernels.errors import GraphError
from lacuna_kernels.types import Axis, DType, ValueType

if TYPE_CHECKING:
    from torch import Tensor

    from lacuna_kernels.ops.context import Context
    from lacuna_kernels.types import Value

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,127}$")]
Size = Annotated[int, Field(ge=1, le=2**31 - 1)]
Relations = Annotated[int, Field(ge=1, le=2**16)]
MAX_NODES = 10_000


class Precision(StrEnum):
    """How a node computes; sums are always kept in fp32."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    TF32 = "tf32"


@dataclass(frozen=True, slots=True)
class Cost:
    """Arithmetic and compulsory traffic of one node for one batch: each input read once, each output written once."""

    flop: int
    bytes: int


class Node(BaseModel):
    """One step of a network: a name, an op, the names of its inputs, and the op's attributes (in the subclasses).

    Each op is a subclass in a file of its own in `ops/`. It says what comes out (`infer_type`), which weights it
    has (`weight_shapes`), what it costs (`cost`) and what it means (`reference`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    arity: ClassVar[tuple[int, int]] = (1, 1)

    name: Name
    op: str
    inputs: tuple[Name, ...]
    precision: Precision | None = None

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Return the type of the output; raises ValueError saying what was wrong and what would be right."""
        raise NotImplementedError

    def weight_shapes(self, inputs: Sequence[ValueType]) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight, by its name without the node's."""
        return {}

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """Return the cost for `rows` rows (points, sites) of the first input; fp32 unless the node says otherwise."""
        raise NotImplementedError

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Return the output, computed as plainly as torch allows: the meaning of the op, differentiable, any device."""
        raise NotImplementedError


class InputSpec(BaseModel):
    """One input of a network: its axis, element type, and the sizes after the first axis.

    columns    of a cloud: names of the features of a point; nodes of graphs, which lie nowhere, have a shape instead
    nodes      of edges: the point input whose rows they join
    relations  of edges: how many kinds of them there are
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    axis: Literal[Axis.ROW, Axis.SEQUENCE, Axis.IMAGE, Axis.POINT, Axis.EDGE]
    dtype: DType = DType.FP32
    shape: tuple[Size, ...] | None = None
    columns: tuple[Name, ...] | None = None
    nodes: Name | None = None
    relations: Relations | None = None

    @model_validator(mode="before")
    @classmethod
    def _edges_are_whole_numbers(cls, given: Any) -> Any:
        is_edges = isinstance(given, dict) and given.get("axis") == Axis.EDGE
        return {"dtype": DType.INT32, **given} if is_edges else given

    def value_type(self, name: str) -> ValueType:
        """Return the type of this input; raises ValueError if what it has does not fit the axis."""
        if self.axis is Axis.EDGE:
            return self._edges()
        if self.nodes is not None or self.relations is not None:
            raise ValueError(f"only an edge input has nodes and relations, this is a {self.axis} input")
        if self.axis is Axis.POINT:
            return self._cloud(name) if self.shape is None else self._nodes(name)
        sizes = {Axis.ROW: 1, Axis.SEQUENCE: 2, Axis.IMAGE: 3}[self.axis]
        if self.columns is not None or self.shape is None or len(self.shape) != sizes:
            raise ValueError(f"a {self.axis} input needs a shape of {sizes} sizes after the first axis and no columns")
        return ValueType(self.axis, self.shape, self.dtype)

    def _cloud(self, name: str) -> ValueType:
        if self.columns is None:
            raise ValueError("a point input needs columns, such as x, y, z, intensity, or a shape: [features]")
        if self.columns[:3] != ("x", "y", "z") or len(set(self.columns)) != len(self.columns):
            raise ValueError(f"the columns of a cloud start with x, y, z and are all different, got {self.columns}")
        if self.dtype is not DType.FP32:
            raise ValueError(f"points are fp32, got {self.dtype}")
        return ValueType(Axis.POINT, (len(self.columns),), self.dtype, self.columns, points=name)

    def _nodes(self, name: str) -> ValueType:
        if self.columns is not None or self.shape is None or len(self.shape) != 1:
            raise ValueError("a point input has columns, such as x, y, z, intensity, or a shape: [features], not both")
        if self.dtype is not DType.FP32:
            raise ValueError(f"points are fp32, got {self.dtype}")
        return ValueType(Axis.POINT, self.shape, self.dtype, points=name)

    def _edges(self) -> ValueType:
        if self.nodes is None or self.relations is None or self.shape is not None or self.columns is not None:
            raise ValueError(
                "an edge input needs nodes, the point input that it joins, and relations, and nothing else"
            )
        if self.dtype is not DType.INT32:
            raise ValueError(f"edges are int32, got {self.dtype}")
        return ValueType(Axis.EDGE, (3,), self.dtype, points=self.nodes, relations=self.relations)


class OutputSpec(BaseModel):
    """One output of a network: the value of the node of that name, and the classes that its numbers stand for."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    classes: tuple[str, ...] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None


class Graph(BaseModel):
    """A whole network, valid once constructed by `ops.parse_graph`: `types` holds the type of every value."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1]
    inputs: dict[Name, InputSpec] = Field(min_length=1)
    nodes: tuple[Node, ...] = Field(min_length=1, max_length=MAX_NODES)
    outputs: dict[Name, OutputSpec] = Field(min_length=1)

    @cached_property
    def types(self) -> dict[str, ValueType]:
        """The type of every input and node, by name; computing it validates the graph and raises GraphError."""
        types: dict[str, ValueType] = {}
        for name, spec in self.inputs.items():
            with_name(f"input {name!r}", lambda spec=spec, name=name: types.update({name: spec.value_type(name)}))
        self._check_edges()
        self._check_names()
        for node in self.nodes:
            types[node.name] = self._infer(node, types)
        return types

    def _check_edges(self) -> None:
        points = [name for name, spec in self.inputs.items() if spec.axis is Axis.POINT]
        for name, spec in self.inputs.items():
            if spec.axis is Axis.EDGE and spec.nodes not in points:
                raise GraphError(f"input {name!r}: joins {spec.nodes!r}, which is no point input; those are {points}")

    def _check_names(self) -> None:
        seen = set(self.inputs)
        for node in self.nodes:
            if node.name in seen:
                raise GraphError(f"node {node.name!r}: the name is taken; every input and node needs its own")
            seen.add(node.name)

    def _infer(self, node: Node, types: Mapping[str, ValueType]) -> ValueType:
        for name in node.inputs:
            if name not in types:
                later = any(other.name == name for other in self.nodes)
                hint = "is made later (nodes stand in the order they run; cycles cannot)" if later else "does not exist"
                raise GraphError(f"node {node.name!r} ({node.op}): its input {name!r} {hint}")
        low, high = node.arity
        if not low <= len(node.inputs) <= high:
            wanted = f"{low}" if low == high else f"{low} to {high}"
            raise GraphError(f"node {node.name!r} ({node.op}): takes {wanted} inputs, got {len(node.inputs)}")
        inputs = [types[name] for name in node.inputs]
        result: ValueType = with_name(f"node {node.name!r} ({node.op})", lambda: node.infer_type(inputs))
        return result

    def validate_whole(self) -> None:
        """Check everything that can be checked without weights; raises GraphError naming the node."""
        _ = self.types
        for name, spec in self.outputs.items():
            if name not in self.by_name:
                raise GraphError(
                    f"output {name!r}: no node has that name; nodes are {[n.name for n in self.nodes][:20]}"
                )
            if spec.colors is not None and (spec.classes is None or len(spec.colors) != len(spec.classes)):
                raise GraphError(f"output {name!r}: colors needs as many entries as classes")
            if spec.classes is not None and len(spec.classes) != (count := self.class_count(name)):
                raise GraphError(f"output {name!r}: names {len(spec.classes)} classes, but has {count}")
        if unused := sorted(self.by_name.keys() - self._reachable()):
            raise GraphError(f"node {unused[0]!r}: no output needs it; remove it or name it as an output")

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def by_op(self) -> dict[str, list[Node]]:
        """The nodes by op, in order."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            found.setdefault(node.op, []).append(node)
        return found

    def class_count(self, name: str) -> int:
        """How many classes there may be in a value: the channels of scores, or of those that labels were taken from."""
        while name in self.by_name and not self.types[name].dtype.is_float:
            name = self.by_name[name].inputs[0]
        return self.types[name].channels

    def _reachable(self) -> set[str]:
        reached = set(self.outputs)
        for node in reversed(self.nodes):
            if node.name in reached:
                reached.update(node.inputs)
        return reached

    def input_types(self, node: Node) -> list[ValueType]:
        """Return the types of a node's inputs, in order."""
        return [self.types[name] for name in node.inputs]

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight, by its full name `node.weight`."""
        return {
            f"{node.name}.{key}": shape
            for node in self.nodes
            for key, shape in node.weight_shapes(self.input_types(node)).items()
        }

    @property
    def output_types(self) -> dict[str, ValueType]:
        """The types of the outputs, by name, in order."""
        return {name: self.types[name] for name in self.outputs}

    @property
    def input_value_types(self) -> dict[str, ValueType]:
        """The types of the inputs, by name, in order."""
        return {name: self.types[name] for name in self.inputs}


def with_name(what: str, step: Any) -> Any:
    """Run a step, and give any ValueError the name of what it was about, as a GraphError."""
    try:
        return step()
    except GraphError:
        raise
    except ValueError as error:
        raise GraphError(f"{what}: {error}") from error
