"""A network's inputs and outputs as a client sees them: named tensors of the Open Inference Protocol.

| of the graph | on the wire |
|---|---|
| a dense input or output `x` | `x`, `[-1, ...]`: rows first |
| the cloud, if the graph has one | `POINTS` `[-1, columns]`, and optional `OFFSETS` INT32 `[-1]` |
| clouds `a` and `b`, if it has several | `POINTS_a`, `OFFSETS_a`, `POINTS_b`, `OFFSETS_b` |
| the nodes of graphs | as a cloud, `[-1, features]` |
| the edges between them | `EDGES` INT32 `[-1, 3]`: source, target, relation; optional `EDGE_OFFSETS` INT32 `[-1]` |
| edges `a` and `b`, if there are several | `EDGES_a`, `EDGE_OFFSETS_a`, `EDGES_b`, `EDGE_OFFSETS_b` |
| a point output `labels` | `labels`, in the order of POINTS |
| a site output `f` | `f`, and `f_COORDINATES` INT32 `[-1, 4]`: cloud, x, y, z in steps of the level |

Cloud i owns the points from OFFSETS[i] to OFFSETS[i + 1]; without OFFSETS there is one cloud. Graph i owns the edges
from EDGE_OFFSETS[i] to EDGE_OFFSETS[i + 1], which number its nodes from 0.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lacuna_kernels import Axis, Graph, Value, ValueType
from lacuna_service.codecs.columns import clip
from lacuna_service.codecs.inference import InferRequest, WireTensor
from lacuna_service.codecs.tensors import BINARY_ONLY, DATATYPES, NAMES
from lacuna_service.errors import BadRequest

OFFSETS_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named tensor: the sizes after the first axis, whose size is the request's; and whether it may be left out."""

    name: str
    datatype: str
    sizes: tuple[int, ...]
    optional: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The same type in torch."""
        return DATATYPES[self.datatype]

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {[-1, *self.sizes]}" + (" (optional)" if self.optional else "")


class Signature:
    """The tensors that a network takes and gives, and the way from them to the network's values and back."""

    def __init__(self, graph: Graph) -> None:
        self._inputs, self._outputs = graph.input_value_types, graph.output_types
        self._ragged = _ragged_names(self._inputs)
        self.inputs = tuple(spec for name, kind in self._inputs.items() for spec in self._input_specs(name, kind))
        self.outputs = tuple(spec for name, kind in self._outputs.items() for spec in _output_specs(name, kind))
        self._input_by_name = {spec.name: spec for spec in self.inputs}
        self._output_by_name = {spec.name: spec for spec in self.outputs}

    def _input_specs(self, name: str, kind: ValueType) -> list[TensorSpec]:
        datatype = NAMES[kind.dtype.torch]
        if name not in self._ragged:
            return [TensorSpec(name, datatype, kind.shape)]
        data, offsets = self._ragged[name]
        return [TensorSpec(data, datatype, kind.shape), TensorSpec(offsets, "INT32", (), optional=True)]

    def batch(self, request: InferRequest) -> dict[str, Value]:
        """The network's inputs out of a request's tensors; raises BadRequest for names or datatypes that do not fit."""
        sent = self._raw(request.raw) if request.raw is not None else request.inputs
        for tensor in sent:
            self._check_input(tensor)
        self._check_missing({tensor.name for tensor in sent})
        return self.values({tensor.name: tensor.tensor() for tensor in sent})

    def values(self, tensors: Mapping[str, Tensor]) -> dict[str, Value]:
        """The network's inputs out of named tensors of the right datatypes; raises BadRequest if one is missing."""
        self._check_missing(tensors.keys())
        self._check_offsets(tensors)
        return {name: self._value(name, tensors) for name in self._inputs}

    def wanted(self, request: InferRequest) -> list[tuple[TensorSpec, bool]]:
        """The outputs to answer, in order, and whether in binary form; raises BadRequest for one that there is not."""
        asked = request.outputs or tuple((spec.name, request.binary_default) for spec in self.outputs)
        wanted = []
        for name, binary in asked:
            spec = self._output_by_name.get(name)
            if spec is None:
                raise BadRequest(f"output {clip(name)} is not known; the model gives {', '.join(self._output_by_name)}")
            if spec.datatype in BINARY_ONLY and not binary:
                raise BadRequest(f"output {name!r} is {spec.datatype}, which has no JSON form: ask for binary data")
            wanted.append((spec, binary))
        return wanted

    def tensors(self, values: Mapping[str, Value]) -> dict[str, Tensor]:
        """Every output tensor of the network's values, in the datatype that was announced."""
        found: dict[str, Tensor] = {}
        for name, value in values.items():
            found[name] = value.data.to(self._output_by_name[name].dtype)
            if value.coordinates is not None and self._outputs[name].axis is Axis.SITE:
                found[f"{name}_COORDINATES"] = value.coordinates
        return found

    def _told(self) -> str:
        return ", ".join(map(str, self.inputs))

    def _check_missing(self, given: Collection[str]) -> None:
        for spec in self.inputs:
            if not spec.optional and spec.name not in given:
                raise BadRequest(f"input {spec.name!r} is missing; the model takes {self._told()}")

    def _check_offsets(self, given: Mapping[str, Tensor]) -> None:
        """Without offsets an input is one item, and then so are all others."""
        names = [offsets for _, offsets in self._ragged.values()]
        several = next((name for name in names if name in given and len(given[name]) != 2), None)
        missing = next((name for name in names if name not in given), None)
        if several is not None and missing is not None:
            items = len(given[several]) - 1
            raise BadRequest(
                f"input {missing!r} is missing: {several!r} tells of {items} items, without it there is one"
            )

    def _check_input(self, tensor: WireTensor) -> None:
        spec = self._input_by_name.get(tensor.name)
        if spec is None:
            raise BadRequest(f"input {clip(tensor.name)} is not known; the model takes {self._told()}")
        if tensor.datatype != spec.datatype:
            raise BadRequest(f"input {spec.name!r} has datatype {clip(tensor.datatype)}, it must be {spec.datatype}")
        if len(tensor.shape) != 1 + len(spec.sizes) or tensor.shape[1:] != spec.sizes:
            raise BadRequest(f"input {spec.name!r} has shape {list(tensor.shape)}, it must be {[-1, *spec.sizes]}")

    def _raw(self, body: memoryview) -> tuple[WireTensor]:
        spec, *others = self.inputs
        if not all(other.optional for other in others):
            raise BadRequest(f"a body without a header serves models of one input, this one takes {self._told()}")
        row_bytes = spec.dtype.itemsize
        for size in spec.sizes:
            row_bytes *= size
        if len(body) % row_bytes:
            raise BadRequest(f"the body has {len(body)} bytes, no multiple of the {row_bytes} of one row of {spec}")
        return (WireTensor(spec.name, spec.datatype, (len(body) // row_bytes, *spec.sizes), body),)

    def _value(self, name: str, tensors: Mapping[str, Tensor]) -> Value:
        if name not in self._ragged:
            return Value(tensors[name])
        data, offsets = (tensors.get(tensor) for tensor in self._ragged[name])
        assert data is not None  # as it may not be left out
        if offsets is None:
            return Value(data, torch.tensor([0, len(data)]))
        if len(offsets) > OFFSETS_LIMIT:
            raise BadRequest(f"{len(offsets)} offsets, at most {OFFSETS_LIMIT} are taken")
        return Value(data, offsets.long())


def _ragged_names(inputs: Mapping[str, ValueType]) -> dict[str, tuple[str, str]]:
    """What the rows and the offsets of clouds and edges are called; those of several by their inputs' names."""
    found: dict[str, tuple[str, str]] = {}
    for axis, rows, offsets in ((Axis.POINT, "POINTS", "OFFSETS"), (Axis.EDGE, "EDGES", "EDGE_OFFSETS")):
        names = [name for name, kind in inputs.items() if kind.axis is axis]
        suffixes = [""] if len(names) == 1 else [f"_{name}" for name in names]
        found |= {name: (f"{rows}{suffix}", f"{offsets}{suffix}") for name, suffix in zip(names, suffixes, strict=True)}
    return found


def _output_specs(name: str, kind: ValueType) -> list[TensorSpec]:
    specs = [TensorSpec(name, NAMES[kind.dtype.torch], kind.shape)]
    if kind.axis is Axis.SITE:
        specs.append(TensorSpec(f"{name}_COORDINATES", "INT32", (4,)))
    return specs
