"""Trained layers as nodes: what every kind of checkpoint is read into."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lacuna_kernels.convert.chains import Chain, merge
from lacuna_kernels.errors import ConversionError
from lacuna_kernels.ops.kronecker_linear import KSPattern

Tensors = Mapping[str, Tensor]
LINEAR_OPS = ("linear", "kronecker_linear")
_NUMBERED = re.compile(r"(?:^|\.)((?:factors|ks_values)\.\d+)$")
MOST_FACTORS = 64  # of a kronecker_linear node


@dataclass(frozen=True, slots=True)
class Layer:
    """A trained layer as a node: its op with attributes and weights, and the widths that it takes and gives.

    narrowest  the fewest inputs it takes: fewer than width_in are padded with zeros, as its own code does
    kept       how many of its outputs are outputs of the layer, from the first on
    picked     which of its inputs, padded, the op gets, in order; None: all of them
    """

    name: str
    op: str
    attributes: dict[str, Any]
    weights: Tensors
    width_in: int
    width_out: int
    narrowest: int
    kept: int
    picked: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Hints:
    """What a state dict does not say of its layers.

    patterns      of KSLinear, by the name of the layer; the entry "" is for every layer
    layout        of KSLinear's factors: values, bmm, kernel or dense; None: by their shapes
    out_features  of layers without a bias that keep fewer outputs than they compute, by name
    descending    names (with wildcards) of Butterfly layers with increasing_stride=False
    shuffled      names (with wildcards) of BlockdiagLinear layers with shuffle=True
    largest       neighbouring factors are multiplied together while their blocks stay within that many rows and columns
    """

    patterns: Mapping[str, Chain] = field(default_factory=dict)
    layout: str | None = None
    out_features: Mapping[str, int] = field(default_factory=dict)
    descending: Sequence[str] = ()
    shuffled: Sequence[str] = ()
    largest: int = 0

    def chain(self, name: str) -> Chain | None:
        """The patterns told for a layer."""
        return self.patterns.get(name, self.patterns.get(""))


def matches(name: str, wildcards: Sequence[str]) -> bool:
    """Whether a layer's name is among names with wildcards."""
    return any(fnmatchcase(name, wildcard) for wildcard in wildcards)


def grouped(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """Tensors by layer and by their names in it, layers in the order of the first of their tensors."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = _NUMBERED.search(name)
        leaf = found[1] if found else name.rpartition(".")[2]
        layers.setdefault(name.removesuffix(leaf).removesuffix("."), {})[leaf] = tensor
    return layers


def numbered(leaves: Tensors, stems: Sequence[str]) -> list[Tensor] | None:
    """The tensors beside the bias in their order, if they are called STEM0, STEM1, ... with one of the stems."""
    names = leaves.keys() - {"bias"}
    for stem in stems:
        wanted = [f"{stem}{index}" for index in range(len(names))]
        if names and names == set(wanted):
            return [leaves[name] for name in wanted]
    return None


def bias_of(leaves: Tensors) -> Tensor | None:
    """The bias [width], which a batch-size-last layer keeps as [width, 1]."""
    return leaves["bias"].float().flatten() if "bias" in leaves else None


def kronecker_layer(
    name: str, factors: Sequence[Tensor], leaves: Tensors, hints: Hints, narrowest: int | None = None
) -> Layer:
    """A layer of factors [a, b, c, d] in order of application; it keeps as many outputs as its bias has, or as told.

    Raises ConversionError if the factors do not fit each other.
    """
    bias, kept = bias_of(leaves), hints.out_features.get(name)
    chain = [KSPattern(*factor.shape) for factor in factors]
    for before, after in pairwise(chain):
        if before.width_out != after.width_in:
            raise ConversionError(f"layer {name!r}: factors do not fit each other: {before} and then {after}")
    width_in, width_out = chain[0].width_in, chain[-1].width_out
    kept = kept or (width_out if bias is None else len(bias))
    if kept > width_out or (bias is not None and len(bias) != kept):
        told = "no bias" if bias is None else f"a bias of {len(bias)}"
        raise ConversionError(f"layer {name!r} computes {width_out} outputs, {kept} are asked for, with {told}")
    last = factors[-1][:, : -(-kept // chain[-1].d)]  # without rows j that give no output which is kept
    factors = [*factors[:-1], last]
    width_out = KSPattern(*last.shape).width_out
    weights = {f"factors.{index}": factor.float() for index, factor in enumerate(factors)}
    if bias is not None:
        weights["bias"] = torch.nn.functional.pad(bias, (0, width_out - len(bias)))
    attributes = {"patterns": [list(factor.shape) for factor in factors], "bias": bias is not None}
    return Layer(name, "kronecker_linear", attributes, weights, width_in, width_out, narrowest or width_in, kept)


def merged(layer: Layer, largest: int) -> Layer:
    """The layer with neighbouring factors multiplied together, if `largest` is not 0.

    Raises ConversionError if more factors are left than fit in a node.
    """
    if layer.op != "kronecker_linear":
        return layer
    factors = [layer.weights[f"factors.{index}"] for index in range(len(layer.attributes["patterns"]))]
    if largest:
        factors = merge(factors, largest)
    if len(factors) > MOST_FACTORS:
        raise ConversionError(f"layer {layer.name!r} has {len(factors)} factors, {MOST_FACTORS} fit: give --merge 32")
    weights = {key: weight for key, weight in layer.weights.items() if key == "bias"}
    weights |= {f"factors.{index}": factor for index, factor in enumerate(factors)}
    patterns = [list(factor.shape) for factor in factors]
    return replace(layer, attributes=layer.attributes | {"patterns": patterns}, weights=weights)
