"""Networks drawn at random: every op on sites and points, in any order that is valid."""

import random

from lacuna_kernels import Graph, GraphError, parse_graph
from tests.kernels.networks import Document, cloud, document, node

ACTIVATIONS = [None, "relu", "gelu", "silu", "leaky_relu", "tanh"]
STRIDES = [([2, 2, 2], [2, 2, 2], [0, 0, 0]), ([3, 3, 3], [2, 2, 2], [1, 1, 1]), ([3, 1, 2], [2, 1, 3], [1, 0, 0])]


def random_network(seed: int, steps: int = 12) -> Graph:
    """A valid network whose outputs are the last value on sites, one on points and one row per cloud."""
    rng = random.Random(seed)
    grid = node("grid", "voxelize", "points", voxel_size_m=[0.3, 0.4, 0.5], reduce=rng.choice(["mean", "first"]))
    nodes, sites = [grid], ["grid"]
    for step in range(steps):
        proposal = _proposal(rng, f"n{step}", sites, nodes)
        try:
            parse_graph(document(cloud("intensity"), _needed([*nodes, proposal], [proposal["name"]]), proposal["name"]))
        except GraphError:
            continue
        nodes.append(proposal)
        sites.append(proposal["name"])
    last = sites[-1]
    nodes.append(node("at_points", "devoxelize", last, "grid", mode="trilinear"))
    nodes.append(node("pooled", "global_pool", last, mode=rng.choice(["mean", "max"])))
    names = ["at_points", "pooled"] if last == "grid" else [last, "at_points", "pooled"]
    return parse_graph(document(cloud("intensity"), _needed(nodes, names), *names))


def _proposal(rng: random.Random, name: str, sites: list[str], nodes: list[Document]) -> Document:
    x, other = rng.choice(sites[-3:]), rng.choice(sites)
    common = {"out_channels": rng.choice([3, 8, 16, 20]), "bias": rng.random() < 0.5}
    activation = rng.choice(ACTIVATIONS)
    if activation:
        common["activation"] = activation
    kernel, stride, padding = rng.choice(STRIDES)
    strided = [entry["name"] for entry in nodes if entry.get("mode") == "strided"]
    return rng.choice(
        [
            node(name, "sparse_conv", x, kernel_size=rng.choice([[3, 3, 3], [1, 1, 1], [3, 1, 5]]), **common),
            node(name, "sparse_conv", x, kernel_size=[3, 3, 3], dilation=[2, 1, 2], **common),
            node(name, "sparse_conv", x, mode="strided", kernel_size=kernel, stride=stride, padding=padding, **common),
            node(name, "sparse_conv", x, mode="strided", kernel_size=kernel, stride=stride, sites="floor", **common),
            node(name, "sparse_conv", x, mode="inverse", of=rng.choice(strided or ["none"]), **common),
            node(name, "sparse_conv", x, mode="generative", kernel_size=kernel, stride=stride, **common),
            node(name, "linear", x, out_features=rng.choice([5, 16])),
            node(name, "batch_norm", x),
            node(name, "layer_norm", x),
            node(name, rng.choice(["relu", "gelu_tanh", "sigmoid"]), x),
            node(name, "add", x, other),
            node(name, "concat", x, other),
        ]
    )


def _needed(nodes: list[Document], names: list[str]) -> list[Document]:
    """The nodes that some values depend on."""
    wanted = set(names)
    for entry in reversed(nodes):
        if entry["name"] in wanted:
            wanted.update(entry["inputs"])
            if entry.get("mode") == "inverse":
                wanted.add(entry["of"])
    return [entry for entry in nodes if entry["name"] in wanted]
