"""A model folder for people: its inputs, nodes and outputs with types, weights and cost: `lacuna info`."""

import math
from collections.abc import Container, Sequence

from lacuna_kernels import Axis, Graph, Model, Options, Unsupported, memory_use
from lacuna_service.config import ServingConfig, is_ragged, plan_costs
from lacuna_service.signature import Signature

HEADINGS = ("node", "op", "inputs", "type", "parameters", "MFLOP", "MB moved")


def describe(model: Model, rows: int) -> str:
    """The whole model as text; cost is for `rows` rows or points."""
    graph = model.graph
    lines = [*ends(model), ""]
    weights = [f"weight  {name} {list(shape)}" for name, shape in graph.weight_shapes().items()]
    return "\n".join(
        [*lines, *columns([HEADINGS, *_table(graph, rows)], range(4, 7)), "", _note(graph, rows), "", *weights]
    )


def memory(model: Model, config: ServingConfig) -> str:
    """What the model would take on a GPU, for all sizes of batches that it is served in."""
    costs = plan_costs(config, model.graph)
    try:
        use = memory_use(model, Options(config.precision, max_cost=config.max_batch_cost), costs)
    except Unsupported as error:
        return f"memory  none: {error}"
    plans = ", ".join(f"{cost:,}: {_mib(size)}" for cost, size in use.plans)
    unit = "points" if is_ragged(model.graph) else "rows"
    return f"memory  on an H200 in {config.precision}: weights {_mib(use.weights)}; plans by {unit} {plans} (MiB)"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"


def ends(model: Model) -> list[str]:
    """The inputs and outputs, a line each, with names, types and shapes as over HTTP."""
    signature = Signature(model.graph)
    return [*(f"input   {spec}" for spec in signature.inputs), *(f"output  {spec}" for spec in signature.outputs)]


def _table(graph: Graph, rows: int) -> list[tuple[str, ...]]:
    """One line a node, and their sums."""
    table: list[tuple[str, ...]] = []
    totals = [0, 0, 0]
    for node in graph.nodes:
        inputs = graph.input_types(node)
        parameters = sum(math.prod(shape) for shape in node.weight_shapes(inputs).values())
        cost = node.cost(inputs, rows)
        for index, number in enumerate((parameters, cost.flop, cost.bytes)):
            totals[index] += number
        names = ", ".join(node.inputs)
        table.append(
            (node.name, node.op, names, str(graph.types[node.name]), *_numbers(parameters, cost.flop, cost.bytes))
        )
    return [*table, ("total", "", "", "", *_numbers(totals[0], totals[1], totals[2]))]


def _numbers(parameters: int, flop: int, size: int) -> tuple[str, str, str]:
    return f"{parameters:,}", f"{flop / 1e6:,.3f}", f"{size / 1e6:,.3f}"


def columns(table: Sequence[tuple[str, ...]], numbers: Container[int]) -> list[str]:
    """A line a row, in columns as wide as their cells; those of these numbers are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _note(graph: Graph, rows: int) -> str:
    if any(kind.axis is Axis.EDGE for kind in graph.input_value_types.values()):
        return f"Cost of {rows} nodes, if an edge of every relation leads to each."
    if is_ragged(graph):
        return f"Cost of {rows} points, if each has a voxel of its own and all of its neighbours: an upper bound."
    return f"Cost of {rows} rows: multiplications and additions; every input, weight and output moved once."
