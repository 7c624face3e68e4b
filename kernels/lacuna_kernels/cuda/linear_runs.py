"""Linear layers that follow each other, in one launch where that costs less: few rows."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, combinations

import torch
from torch import Tensor

from lacuna_kernels.cuda.capacity import Capacity
from lacuna_kernels.cuda.dense_steps import LINEAR, factors_of, problems_of
from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.fusion import Layer
from lacuna_kernels.cuda.kronecker.choose import Stage, cost_of, stages, sums_of
from lacuna_kernels.cuda.kronecker.few_rows import CHAIN_WAYS, FewRowsChain
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.way import Epilogue, Operands
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.cuda.steps import Buffers, Writer, vectors
from lacuna_kernels.graph import Graph
from lacuna_kernels.ops.linear import Linear
from lacuna_kernels.types import Axis, ValueType


@dataclass(frozen=True, slots=True)
class Run:
    """Layers of a network that a kernel takes together, each reading nothing but what the one before it made.

    problems  of the factors of all layers
    is_end    whether what they make is an output of the network, and nothing else
    """

    layers: tuple[Layer, ...]
    way: FewRowsChain
    problems: tuple[Problem, ...]
    is_end: bool


def runs(writer: Writer, graph: Graph, layers: Sequence[Layer]) -> Iterator[Layer | Run]:
    """The layers in order, those that cost less together as runs."""
    read = {name for layer in layers for name in layer.inputs}
    for line in lines(graph, layers):
        is_end = line[-1].output not in read
        yield from line if len(line) == 1 else _cheapest(writer, line, is_end)


def lines(graph: Graph, layers: Sequence[Layer]) -> Iterator[Sequence[Layer]]:
    """The layers in order, cut wherever one may not be computed together with the next."""
    uses = Counter(name for layer in layers for name in layer.inputs) + Counter(list(graph.outputs))
    start = 0
    for end in range(1, len(layers) + 1):
        if end == len(layers) or not _follows(graph.types, uses, layers[end - 1], layers[end]):
            yield layers[start:end]
            start = end


def _follows(types: Mapping[str, ValueType], uses: Counter[str], first: Layer, then: Layer) -> bool:
    """Whether two layers may be computed together: nobody else asks for what is between them."""
    alike = isinstance(first.node, LINEAR) and isinstance(then.node, LINEAR) and first.precision is then.precision
    kinds = types[first.output], types[then.output]
    if kinds[0].axis is Axis.SITE and any(isinstance(layer.node, Linear) for layer in (first, then)):
        return False  # it may be a convolution, on plans of every size
    return (
        alike
        and then.inputs == (first.output,)
        and uses[first.output] == 1
        and (kinds[0].axis, kinds[0].shape[:-1]) == (kinds[1].axis, kinds[1].shape[:-1])
    )


def _cheapest(writer: Writer, line: Sequence[Layer], is_end: bool) -> list[Layer | Run]:
    """The layers of a line, alone or in runs, as they cost least together: measured, or else predicted."""
    limits, table = writer.device.limits, writer.tuned.factors
    each = [problems_of(layer, writer.types[layer.output], writer.room) for layer in line]
    best: list[tuple[float, list[Layer | Run]]] = [(0.0, [])]
    for end, layer in enumerate(line, 1):
        cost, before = best[-1]
        alone = sum(cost_of(table, stage) for stage in stages(each[end - 1], limits, table))
        options = [(cost + alone, [*before, layer])]
        for start in range(end - 1):
            cost, before = best[start]
            problems = tuple(chain.from_iterable(each[start:end]))
            for way in _ways(problems, limits):
                together = cost_of(table, Stage(way, 0, problems, limits))
                run = Run(tuple(line[start:end]), way, problems, is_end and end == len(line))
                options.append((cost + together, [*before, run]))
        best.append(min(options, key=lambda option: option[0]))
    return best[-1][1]


def spans(graph: Graph, layers: Sequence[Layer], room: Capacity, limits: DeviceLimits) -> Iterator[tuple[Problem, ...]]:
    """The problems of all layers that could become a run."""
    for line in lines(graph, layers):
        each = [problems_of(layer, graph.types[layer.output], room) for layer in line if len(line) > 1]
        for start, end in combinations(range(len(each) + 1), 2):
            problems = tuple(chain.from_iterable(each[start:end]))
            if end - start > 1 and _ways(problems, limits):
                yield problems


def _ways(problems: Sequence[Problem], limits: DeviceLimits) -> list[FewRowsChain]:
    """The ways to take the factors of several layers at once, adding up as single factors would."""
    return [
        way
        for way in CHAIN_WAYS
        if way.fits(problems, limits) and all(way.sums(problem) is sums_of(problem, limits) for problem in problems)
    ]


def write(writer: Writer, run: Run) -> None:
    """y = f_n(K_n ... f_1(K_1 x + bias_1) ... + bias_n), as one step: from fp32 if x is, to fp32 at a network's end."""
    layers, last, weights = run.layers, run.layers[-1], writer.weights
    dtype, device = DTYPES[last.precision], writer.device
    given, *others = layers[0].inputs
    x = given if writer.dtypes[given] is torch.float32 else writer.converted(given, dtype)
    residual = [writer.converted(name, dtype) for name in others]
    count = None if writer.types[last.output].axis is Axis.SEQUENCE else writer.count_of(last.output)
    key = (*(layer.output for layer in layers), run.way.packing, dtype)
    factors = [factor for layer in layers for factor in factors_of(layer)]
    packed: Tensor = weights.make(
        key, lambda: weights.keep(run.way.pack([f.to(weights.place, dtype) for f in factors]))
    )
    ends = [end - 1 for end in accumulate(len(factors_of(layer)) for layer in layers)]
    biases = [weights.bias(layer) for layer in layers]

    def launch(b: Buffers) -> None:
        added = [vectors(b[residual[0]]) if residual else None, *[None] * (len(layers) - 1)]
        epilogues = [
            Epilogue(bias, more, layer.activation, layer.slope)
            for layer, bias, more in zip(layers, biases, added, strict=True)
        ]
        operands = Operands(vectors(b[x]), vectors(b[last.output]), epilogues[-1], None if count is None else b[count])
        run.way.launch_layers(device, run.problems, packed, operands, dict(zip(ends, epilogues, strict=True)))

    reads = [x, *residual] if count is None else [x, *residual, count]
    made = torch.float32 if run.is_end else dtype
    writer.add(last.output, reads, {last.output: writer.spec(last.output, made)}, launch)
