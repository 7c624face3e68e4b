"""Linear layers that follow each other, all in one launch where that is predicted to be faster: few rows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from lacuna_kernels.cuda.dense_steps import LINEAR, factors_of, problems_of
from lacuna_kernels.cuda.fusion import Layer
from lacuna_kernels.cuda.kronecker.choose import stages, sums_of
from lacuna_kernels.cuda.kronecker.few_rows import CHAIN_WAYS, FewRowsChain
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.way import Epilogue, Operands
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.cuda.steps import Buffers, Writer, vectors
from lacuna_kernels.graph import Graph
from lacuna_kernels.types import Axis


@dataclass(frozen=True, slots=True)
class Run:
    """Layers of a network that a kernel takes together, each reading nothing but what the one before it made.

    problems  of the factors of all layers
    """

    layers: tuple[Layer, ...]
    way: FewRowsChain
    problems: tuple[Problem, ...]


def runs(writer: Writer, graph: Graph, layers: Sequence[Layer]) -> Iterator[Layer | Run]:
    """The layers in order, those that are faster together as runs."""
    uses = Counter(name for layer in layers for name in layer.inputs) + Counter(list(graph.outputs))
    start = 0
    while start < len(layers):
        end = start + 1
        while end < len(layers) and _follows(writer, uses, layers[end - 1], layers[end]):
            end += 1
        run = _best(writer, layers[start:end])
        yield run or layers[start]
        start += len(run.layers) if run else 1


def _follows(writer: Writer, uses: Counter[str], first: Layer, then: Layer) -> bool:
    """Whether two layers may be computed together: nobody else asks for what is between them."""
    alike = isinstance(first.node, LINEAR) and isinstance(then.node, LINEAR) and first.precision is then.precision
    kinds = writer.types[first.output], writer.types[then.output]
    return (
        alike
        and then.inputs == (first.output,)
        and uses[first.output] == 1
        and (kinds[0].axis, kinds[0].shape[:-1]) == (kinds[1].axis, kinds[1].shape[:-1])
    )


def _best(writer: Writer, layers: Sequence[Layer]) -> Run | None:
    """The first layers, as many as are faster together than each alone; None if none are."""
    for count in range(len(layers), 1, -1):
        each = [problems_of(layer, writer.types[layer.output], writer.room) for layer in layers[:count]]
        problems = tuple(problem for found in each for problem in found)
        fits = [way for way in CHAIN_WAYS if _fits(writer, way, problems)]
        limits = writer.device.limits
        way = min(fits, key=lambda way: way.seconds(problems, limits), default=None)
        if way is None:
            continue
        apart = sum(stage.seconds for found in each for stage in stages(found, limits, writer.table))
        if way.seconds(problems, limits) < apart:
            return Run(tuple(layers[:count]), way, problems)
    return None


def _fits(writer: Writer, way: FewRowsChain, problems: Sequence[Problem]) -> bool:
    limits = writer.device.limits
    return way.fits(problems, limits) and all(way.sums(problem) is sums_of(problem, limits) for problem in problems)


def write(writer: Writer, run: Run) -> None:
    """y = f_n(K_n ... f_1(K_1 x + bias_1) ... + bias_n), as one step."""
    layers, last, weights = run.layers, run.layers[-1], writer.weights
    dtype, device = DTYPES[last.precision], writer.device
    (x, *residual) = [writer.converted(name, dtype) for name in layers[0].inputs]
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
    writer.add(last.output, reads, writer.output(last), launch)
