"""The dense linear layers of a network replaced by chains of Kronecker-sparse factors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lacuna_kernels.convert.chains import (
    Chain,
    balanced,
    chain_text,
    matrix_of,
    monarch,
    parse_chain,
    square_dyadic,
)
from lacuna_kernels.convert.factorize import check_chain, factorize
from lacuna_kernels.convert.layers import MOST_FACTORS, matches
from lacuna_kernels.errors import ConversionError
from lacuna_kernels.model import Model, check_weights
from lacuna_kernels.ops import parse_graph
from lacuna_kernels.ops.linear import Linear

Rule = Callable[[int, int], Chain]
"""The chain for a layer of width_out x width_in; raises ConversionError if there is none."""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What became of one linear layer.

    shape             (out, in)
    chain             as `parse_chain` reads it
    relative_error    Frobenius norm of what is missed over that of the weight, with factors rounded to fp32; None: kept
                      without being tried
    dense_parameters  of the weight, without bias
    parameters        of what stands there now
    kept              why the layer is still dense, or ""
    """

    name: str
    shape: tuple[int, int]
    chain: str
    relative_error: float | None
    dense_parameters: int
    parameters: int
    kept: str


def chain_rule(text: str, rank: int = 1, blocks: int | None = None) -> Rule:
    """The chain that is meant by `monarch`, `square-dyadic`, `balanced-N`, or patterns as `parse_chain` reads them.

    rank    between any two factors; patterns say theirs themselves
    blocks  of monarch; by default the divisors of the widths that are nearest to their square roots

    Raises ConversionError.
    """
    kind, _, count = text.partition("-")
    if blocks is not None and text != "monarch":
        raise ConversionError(f"blocks are of the chain monarch, not of {text!r}")
    if text == "monarch":
        return lambda out, width: monarch(out, width, blocks, rank) if blocks else balanced(out, width, 2, rank)
    if text == "square-dyadic":
        return lambda out, width: square_dyadic(out, width, rank)
    if kind == "balanced" and count in map(str, range(2, MOST_FACTORS + 1)):
        return lambda out, width: balanced(out, width, int(count), rank)
    if rank != 1:
        raise ConversionError("patterns say their rank themselves; give a rank with monarch, square-dyadic, balanced-N")
    if text.strip() and "," not in text:
        raise ConversionError(
            f"{text!r} is no chain: there are monarch, square-dyadic, balanced-2 to balanced-{MOST_FACTORS}, and "
            "patterns such as '64,64,64,1 1,64,256,16'"
        )
    chain = parse_chain(text)
    if not chain:
        raise ConversionError("the chain is empty")
    check_chain(chain, chain[-1].width_out, chain[0].width_in)
    return lambda *_: chain


def sparsify(
    model: Model,
    rule: Rule,
    *,
    tolerance: float | None = None,
    only: Sequence[str] = ("*",),
    on_layer: Callable[[LayerReport], None] = lambda report: None,
) -> Model:
    """The network with its linear layers factorised; `on_layer` hears of each as it is done.

    tolerance  layers with a larger relative error stay dense; None: any error is taken
    only       names of the layers to try, with wildcards

    A layer also stays dense if the rule has no chain for its shape, or if the chain has no fewer parameters.

    Raises ConversionError if there are no linear layers, or a name in `only` is that of none.
    """
    names = linear_layers(model)
    if not names:
        raise ConversionError("the network has no linear layers to factorise")
    if unknown := [text for text in only if not any(matches(name, [text]) for name in names)]:
        raise ConversionError(f"{unknown[0]!r} is no linear layer of the network ({', '.join(map(repr, names))})")
    weights, replaced = dict(model.weights), dict[str, list[Tensor]]()
    for name in names:
        report, factors = _layer(name, weights[f"{name}.weight"], rule, tolerance, only)
        if factors:
            replaced[name] = factors
            del weights[f"{name}.weight"]
            weights |= {f"{name}.factors.{index}": factor for index, factor in enumerate(factors)}
        on_layer(report)
    document = model.graph.model_dump(mode="json", exclude_defaults=True)
    document["nodes"] = [_node(node, replaced.get(node["name"], ())) for node in document["nodes"]]
    graph = parse_graph(document)
    return Model(graph, check_weights(graph, weights))


def linear_layers(model: Model) -> list[str]:
    """The names of the linear layers of a network, in order."""
    return [node.name for node in model.graph.nodes if isinstance(node, Linear)]


def _layer(
    name: str, weight: Tensor, rule: Rule, tolerance: float | None, only: Sequence[str]
) -> tuple[LayerReport, list[Tensor]]:
    """The report on one layer, and its factors, fp32, or none if it stays dense."""
    out, width = weight.shape
    dense = weight.numel()

    def kept(why: str, chain: str = "", error: float | None = None) -> tuple[LayerReport, list[Tensor]]:
        return LayerReport(name, (out, width), chain, error, dense, dense, why), []

    if not matches(name, only):
        return kept("not asked for")
    try:
        chain = rule(out, width)
        check_chain(chain, out, width)
    except ConversionError as problem:
        return kept(str(problem))
    parameters, text = sum(pattern.nonzeros for pattern in chain), chain_text(chain)
    if parameters >= dense:
        return kept(f"{parameters} parameters, no fewer than dense", text)
    factors = [factor.float().contiguous() for factor in factorize(weight.double(), chain)]
    error = relative_error(weight, factors)
    if tolerance is not None and error > tolerance:
        return kept(f"error above {tolerance:g}", text, error)
    return LayerReport(name, (out, width), text, error, dense, parameters, ""), factors


def relative_error(weight: Tensor, factors: Sequence[Tensor]) -> float:
    """Frobenius norm of weight - K_L ... K_1 over that of the weight, in float64; 0 for a weight of zeros."""
    missed = weight.double() - matrix_of([factor.double() for factor in factors])
    return float(torch.linalg.norm(missed)) / (float(torch.linalg.norm(weight.double())) or 1.0)


def _node(node: Mapping[str, Any], factors: Sequence[Tensor]) -> dict[str, Any]:
    """The node, a linear one with factors as a kronecker_linear one."""
    if not factors:
        return dict(node)
    rest = {key: value for key, value in node.items() if key != "out_features"}
    return rest | {"op": "kronecker_linear", "patterns": [list(factor.shape) for factor in factors]}
