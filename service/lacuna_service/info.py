"""A model folder for people: its inputs, nodes and outputs with types, weights and cost: `lacuna info`."""

import math

from lacuna_kernels import Graph, Model
from lacuna_service.config import is_ragged
from lacuna_service.signature import Signature

HEADINGS = ("node", "op", "inputs", "type", "parameters", "MFLOP", "MB moved")


def describe(model: Model, rows: int) -> str:
    """The whole model as text; cost is for `rows` rows or points."""
    graph, signature = model.graph, Signature(model.graph)
    lines = [*(f"input   {spec}" for spec in signature.inputs), *(f"output  {spec}" for spec in signature.outputs), ""]
    weights = [f"weight  {name} {list(shape)}" for name, shape in graph.weight_shapes().items()]
    return "\n".join([*lines, *_columns([HEADINGS, *_table(graph, rows)]), "", _note(graph, rows), "", *weights])


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


def _columns(table: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS))]
    numbers = range(len(HEADINGS) - 3, len(HEADINGS))
    return [
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _note(graph: Graph, rows: int) -> str:
    if is_ragged(graph):
        return f"Cost of {rows} points, if each has a voxel of its own and all of its neighbours: an upper bound."
    return f"Cost of {rows} rows: multiplications and additions; every input, weight and output moved once."
