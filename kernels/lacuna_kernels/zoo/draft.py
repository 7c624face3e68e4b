"""A graph while it is being written down: nodes in order, and the layers that networks are made of."""

from collections.abc import Mapping, Sequence
from typing import Any

from lacuna_kernels.graph import Graph
from lacuna_kernels.ops import parse_graph
from lacuna_kernels.types import Triple


class Draft:
    """Collects nodes; every method adds some and returns the name of the last, to be the input of the next."""

    def __init__(self, **inputs: Mapping[str, Any]) -> None:
        self.inputs = inputs
        self.nodes: list[dict[str, Any]] = []

    def add(self, name: str, op: str, *inputs: str, **attributes: Any) -> str:
        """Add one node; attributes that are None are left out."""
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append({"name": name, "op": op, "inputs": list(inputs), **given})
        return name

    def conv(self, name: str, x: str, channels: int, eps: float, *, relu: bool = True, **attributes: Any) -> str:
        """Add a sparse convolution, its batch norm and, unless told otherwise, a relu."""
        y = self.add(name, "sparse_conv", x, out_channels=channels, **attributes)
        y = self.add(f"{name}_norm", "batch_norm", y, eps=eps)
        return self.add(f"{name}_relu", "relu", y) if relu else y

    def residual(self, name: str, x: str, channels: int, eps: float, *, shortcut: bool, bias: bool = False) -> str:
        """Add two 3^3 convolutions around which x goes unchanged or, with a shortcut, through a 1^3 convolution."""
        kernel: Triple = (3, 3, 3)
        y = self.conv(f"{name}_conv1", x, channels, eps, kernel_size=kernel, bias=bias)
        y = self.conv(f"{name}_conv2", y, channels, eps, kernel_size=kernel, bias=bias, relu=False)
        if shortcut:
            x = self.conv(f"{name}_shortcut", x, channels, eps, kernel_size=(1, 1, 1), relu=False)
        return self.add(f"{name}_relu", "relu", self.add(f"{name}_sum", "add", y, x))

    def graph(self, **outputs: Mapping[str, Any]) -> Graph:
        """Return the finished graph; raises GraphError if the parts do not fit."""
        return parse_graph({"format": 1, "inputs": self.inputs, "nodes": self.nodes, "outputs": outputs})


def class_names(classes: int | Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Return how many classes there are, and what an output that numbers them says of them: names, if given."""
    if isinstance(classes, int):
        return classes, {}
    return len(classes), {"classes": list(classes)}
