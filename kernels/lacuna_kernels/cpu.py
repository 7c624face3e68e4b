"""The CPU backend: walks the graph with the reference ops. It is the meaning of every op and a real backend."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from lacuna_kernels.errors import CapacityExceeded, DeviceOutOfMemory
from lacuna_kernels.graph import Graph
from lacuna_kernels.model import Weights, node_weights
from lacuna_kernels.ops.context import Context
from lacuna_kernels.program import DeviceInfo, Options, Result
from lacuna_kernels.types import Batch, Value, ValueType, collate, cost


def walk(graph: Graph, weights: Weights, batch: Batch) -> dict[str, Value]:
    """Compute the outputs of a batch node by node, on whatever torch device its tensors lie, in fp32.

    Differentiable in weights and inputs, so the same function trains a network. Values are dropped after last use.
    """
    context, values = Context(graph.types), {name: _as_fp32(value) for name, value in batch.items()}
    last_use = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    for index, node in enumerate(graph.nodes):
        inputs = [values[name] for name in node.inputs]
        values[node.name] = node.reference(inputs, node_weights(weights, node), context)
        for name in node.inputs:
            if last_use[name] == index and name not in graph.outputs:
                values.pop(name, None)
    return {name: values[name] for name in graph.outputs}


def _as_fp32(value: Value) -> Value:
    return replace(value, data=value.data.float()) if value.data.is_floating_point() else value


@dataclass(frozen=True, slots=True)
class _Done:
    """A batch that is already computed."""

    outcome: Result

    def result(self) -> Result:
        """Return the outputs."""
        return self.outcome


class CpuProgram:
    """A network on the CPU, always computed in fp32, whatever precision the options ask for."""

    def __init__(self, graph: Graph, weights: Weights, options: Options) -> None:
        self._graph, self._weights, self._options = graph, weights, options
        self.memory_bytes = sum(weight.nbytes for weight in weights.values())
        self.builds: Mapping[str, int] = {"load": 1}

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
        """The largest batch: there is nothing to plan."""
        return self._options.max_cost

    def submit(self, *batches: Batch) -> _Done:
        """Compute batches as one, at once."""
        batch = collate(batches)
        if cost(batch) > self._options.max_cost:
            raise CapacityExceeded(f"a batch of {cost(batch)} is over the limit of {self._options.max_cost}")
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                values = walk(self._graph, self._weights, batch)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "DefaultCPUAllocator" not in str(error):
                raise  # torch has no class of its own for a CPU without memory
            raise DeviceOutOfMemory(f"no memory for a batch of {cost(batch)}") from error
        return _Done(Result(values, time.perf_counter() - start))

    def close(self) -> None:
        """Forget the weights."""
        self._weights = {}


class CpuBackend:
    """Runs every op on the CPU, with torch."""

    device = DeviceInfo(0, "cpu", None, 0)

    def compile(self, graph: Graph, weights: Weights, options: Options) -> CpuProgram:
        """Nothing to compile: the graph is walked."""
        return CpuProgram(graph, weights, options)

    def close(self) -> None:
        """Nothing to close."""
