"""A network of trained layers one behind another, with activations between them."""

import re
from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor

from lacuna_kernels.convert.layers import LINEAR_OPS, Layer
from lacuna_kernels.errors import ConversionError
from lacuna_kernels.graph import Graph
from lacuna_kernels.model import Model, check_weights
from lacuna_kernels.ops.activation import Activation
from lacuna_kernels.ops.classify import Argmax, Softmax
from lacuna_kernels.ops.select_features import ZERO
from lacuna_kernels.zoo.draft import Draft

ACTIVATIONS = tuple(map(str, Activation))
FUNCTIONS = (*ACTIVATIONS, *(name for op in (Softmax, Argmax) for name in get_args(op.model_fields["op"].annotation)))
"""What may stand between layers, or behind them, by name."""


def in_order(layers: Mapping[str, Layer], activation: str | None) -> list[str]:
    """All layers in their order, with an activation behind every linear one but the last.

    Raises ConversionError if there are norms: whether an activation stands before or behind one, no file says.
    """
    linear = [name for name, layer in layers.items() if layer.op in LINEAR_OPS]
    if norms := [name for name, layer in layers.items() if layer.op.endswith("_norm")]:
        raise ConversionError(
            f"{norms[0]!r} is a norm: give --layers with all layers and activations in order, such as "
            f"--layers '{' relu '.join(name for name in layers if name)}'"
        )
    steps: list[str] = []
    for name in layers:
        steps += [name, activation] if activation and name in linear[:-1] else [name]
    return steps


def sequence(layers: Mapping[str, Layer], steps: Sequence[str], in_features: int | None = None) -> Model:
    """The network that takes rows `x` through the steps: names of layers, and of FUNCTIONS, in order.

    in_features  width of x, if the first layer pads it; by default as many as its factors take

    Raises ConversionError naming the layer whose width does not fit.
    """
    known = [layers[name] for name in steps if name in layers]
    if unknown := [step for step in steps if step not in layers and step not in FUNCTIONS]:
        raise ConversionError(f"{unknown[0]!r} is no layer of the file ({', '.join(map(repr, layers))}) nor a function")
    if not known:
        raise ConversionError("there is no layer")
    assembly = _Assembly(in_features or known[0].width_in)
    for step in steps:
        if step in layers:
            assembly.layer(layers[step])
        else:
            assembly.function(step)
    return assembly.model()


class _Assembly:
    """A network while it grows. What picks features waits until something has to see it (`places`)."""

    def __init__(self, width: int) -> None:
        self.draft = Draft(x={"axis": "row", "shape": [width]})
        self.weights: dict[str, Tensor] = {}
        self.x, self.width = "x", width  # the last node, and how many features it has
        self.places = list(range(width))  # where the features of the value that comes next are among them

    def layer(self, layer: Layer) -> None:
        """Add a layer behind what is there; its inputs are padded and picked as it needs."""
        given = len(self.places)
        if not layer.narrowest <= given <= layer.width_in:
            wanted = f"{layer.narrowest} to " * (layer.narrowest < layer.width_in) + f"{layer.width_in}"
            advice = "--in-features tells the input's width" if self.x == "x" else "--layers tells another order"
            raise ConversionError(
                f"layer {layer.name!r} takes {wanted} features, {given} come to it from {self.x!r}; {advice}"
            )
        self.places += [ZERO] * (layer.width_in - given)
        if layer.picked is not None:
            self.places = [self.places[index] for index in layer.picked]
        if layer.op == "select_features":
            return
        weights = dict(layer.weights)
        if layer.op == "kronecker_linear":
            first = absorbed(self.places, weights["factors.0"], self.width)
            if first is not None:
                weights["factors.0"], self.places = first, list(range(self.width))
        self.pick()
        self.add(node_name(layer.name, layer.op), layer.op, **layer.attributes)
        self.weights |= {f"{self.x}.{key}": weight for key, weight in weights.items()}
        self.width, self.places = layer.width_out, list(range(layer.kept))

    def function(self, name: str) -> None:
        """Add an activation, as an attribute of a linear layer where one comes before; or softmax, or argmax."""
        last = self.draft.nodes[-1] if self.draft.nodes else {}
        unfinished = last.get("op") in LINEAR_OPS and "activation" not in last
        if name in ACTIVATIONS and unfinished:
            last["activation"] = name
            return
        self.pick()
        self.add(name, name)

    def pick(self) -> None:
        """Add a node for the features that wait to be picked, unless they are all there in order."""
        if self.places != list(range(self.width)):
            self.add(f"{self.x}_selected", "select_features", indices=list(self.places))
            self.width, self.places = len(self.places), list(range(len(self.places)))

    def add(self, name: str, op: str, **attributes: object) -> None:
        """Add a node behind the last one; a name that is taken gets a number."""
        taken = {"x", *(node["name"] for node in self.draft.nodes)}
        free, number = name, 1
        while free in taken:
            number += 1
            free = f"{name}_{number}"
        self.x = self.draft.add(free, op, self.x, **attributes)

    def model(self) -> Model:
        """The finished network; its output has the name of the last node."""
        self.pick()
        graph: Graph = self.draft.graph(**{self.x: {}})
        return Model(graph, check_weights(graph, self.weights))


def absorbed(places: Sequence[int], values: Tensor, width: int) -> Tensor | None:
    """The values of a factor that itself picks its inputs from `places`, if a pattern can say it, else None.

    It can if every block takes the features that it took before, in another order: K P has the support of K.
    """
    a, _, c, d = values.shape
    if len(places) != width or sorted(places) != list(range(width)) or width != a * c * d:
        return None
    source = torch.tensor(places).reshape(a, c, d)
    home = torch.arange(width).reshape(a, c, d)
    if not (torch.equal(source // (c * d), home // (c * d)) and torch.equal(source % d, home % d)):
        return None
    k = (source // d % c)[:, None].expand_as(values)
    return torch.empty_like(values).scatter_(2, k, values)


def node_name(layer: str, op: str) -> str:
    """A layer's name as a node's: of few characters, without dots as in the names of weights, a letter first."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", layer)[-100:]
    return name if name[:1].isalpha() else f"{op.rpartition('_')[2]}{name}"  # linear0, norm1
