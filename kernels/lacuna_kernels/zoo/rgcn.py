"""R-GCN: a network on graphs with several kinds of edges that gives every node a class.

Schlichtkrull et al., arXiv 1703.06103.
"""

from collections.abc import Sequence

from lacuna_kernels.graph import Graph
from lacuna_kernels.zoo.draft import Draft, class_names


def rgcn(
    classes: int | Sequence[str],
    features: int,
    relations: int,
    *,
    hidden: int = 16,
    layers: int = 2,
    aggregate: str = "mean",
) -> Graph:
    """Relational graph convolutions with ReLU between them, then `label` and `probabilities` of every node.

    Inputs are `nodes` [n, features] and `edges` [e, 3] as (source, target, relation). The paper adds to each edge its
    inverse, which is an edge of another relation here; its entity classification has two layers, 16 channels between.

    Raises ValueError if there is no layer.
    """
    if layers < 1:
        raise ValueError(f"an R-GCN needs at least one layer, got {layers}")
    count, told = class_names(classes)
    draft = Draft(
        nodes={"axis": "point", "shape": [features]}, edges={"axis": "edge", "nodes": "nodes", "relations": relations}
    )
    x = "nodes"
    for layer in range(1, layers):
        shape = {"out_channels": hidden, "aggregate": aggregate, "activation": "relu"}
        x = draft.add(f"hidden{layer}", "relational_graph_conv", x, "edges", **shape)
    logits = draft.add("logits", "relational_graph_conv", x, "edges", out_channels=count, aggregate=aggregate)
    draft.add("label", "argmax", logits)
    draft.add("probabilities", "softmax", logits)
    return draft.graph(label=told, probabilities=told)
