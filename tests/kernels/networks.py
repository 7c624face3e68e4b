"""Networks as documents of the graph format, of the zoo and beyond it: they show that the format can say them."""

from typing import Any

from lacuna_kernels import Graph, zoo

Document = dict[str, Any]
Nodes = list[Document]


def node(name: str, op: str, *inputs: str, **attributes: Any) -> Document:
    return {"name": name, "op": op, "inputs": list(inputs), **attributes}


def document(inputs: Document, nodes: Nodes, *outputs: str) -> Document:
    return {"format": 1, "inputs": inputs, "nodes": nodes, "outputs": {name: {} for name in outputs}}


def cloud(*columns: str) -> Document:
    return {"points": {"axis": "point", "columns": ["x", "y", "z", *columns]}}


def spvcnn(classes: int = 5, width: int = 8) -> Document:
    """Sparse point-voxel convolution (arXiv 2007.16100): a U-Net of one level with a branch of points beside it."""
    nodes = [
        node("grid", "voxelize", "points", voxel_size_m=[0.1, 0.1, 0.1]),
        *conv_bn_relu("stem", "grid", width, kernel_size=[3, 3, 3]),
        node("z0", "devoxelize", "stem.relu", "grid", mode="trilinear"),
        node("x0", "point_to_voxel", "z0", "stem.relu"),
        *conv_bn_relu("down", "x0", 2 * width, kernel_size=[2, 2, 2], stride=[2, 2, 2], mode="strided"),
        *conv_bn_relu("deep", "down.relu", 2 * width, kernel_size=[3, 3, 3]),
        node("z1.voxels", "devoxelize", "deep.relu", "grid", mode="trilinear"),
        node("z1.linear", "linear", "z0", out_features=2 * width),
        node("z1.norm", "batch_norm", "z1.linear"),
        node("z1.points", "relu", "z1.norm"),
        node("z1", "add", "z1.voxels", "z1.points"),
        node("y1", "point_to_voxel", "z1", "deep.relu"),
        *conv_bn_relu("up", "y1", width, mode="inverse", of="down.conv"),
        node("skip", "concat", "up.relu", "x0"),
        *conv_bn_relu("fuse", "skip", width, kernel_size=[3, 3, 3]),
        node("z2.voxels", "devoxelize", "fuse.relu", "grid", mode="trilinear"),
        node("z2.points", "linear", "z1", out_features=width, activation="relu"),
        node("z2", "add", "z2.voxels", "z2.points"),
        node("logits", "linear", "z2", out_features=classes),
        node("labels", "argmax", "logits"),
    ]
    return document(cloud("intensity"), nodes, "labels", "logits")


def conv_bn_relu(name: str, source: str, channels: int, **attributes: Any) -> Nodes:
    return [
        node(f"{name}.conv", "sparse_conv", source, out_channels=channels, **attributes),
        node(f"{name}.bn", "batch_norm", f"{name}.conv"),
        node(f"{name}.relu", "relu", f"{name}.bn"),
    ]


def centerpoint_head(classes: int = 3) -> Document:
    """A small SECOND encoder, bird's-eye view, 2-D neck of two scales, and CenterPoint's heads (arXiv 2006.11275)."""
    down = {"kernel_size": [3, 3, 3], "stride": [2, 2, 2], "padding": [1, 1, 1], "mode": "strided"}
    nodes = [
        node("grid", "voxelize", "points", voxel_size_m=[0.2, 0.2, 0.2], range_m=[-3.2, -3.2, -1.6, 3.2, 3.2, 1.6]),
        *conv_bn_relu("conv1", "grid", 8, kernel_size=[3, 3, 3]),
        *conv_bn_relu("conv2", "conv1.relu", 16, **down),
        *conv_bn_relu("out", "conv2.relu", 16, kernel_size=[1, 1, 3], stride=[1, 1, 2], mode="strided"),
        node("bev", "sparse_to_bev", "out.relu"),
        *image_block("block1", "bev", 16, stride=[1, 1]),
        *image_block("block2", "block1.relu", 32, stride=[2, 2]),
        node("deblock1", "conv_transpose2d", "block1.relu", out_channels=16, kernel_size=[1, 1], activation="relu"),
        node(
            "deblock2",
            "conv_transpose2d",
            "block2.relu",
            out_channels=16,
            kernel_size=[2, 2],
            stride=[2, 2],
            activation="relu",
        ),
        node("neck", "concat", "deblock1", "deblock2"),
        *image_block("shared", "neck", 16, stride=[1, 1]),
    ]
    heads = {"center": 2, "height": 1, "size": 3, "rotation": 2, "velocity": 2, "heatmap": classes}
    nodes += [
        node(head, "conv2d", "shared.relu", out_channels=channels, kernel_size=[3, 3], padding=[1, 1])
        for head, channels in heads.items()
    ]
    nodes.append(node("scores", "sigmoid", "heatmap"))
    return document(cloud("intensity", "time"), nodes, "scores", *list(heads)[:-1])


def image_block(name: str, source: str, channels: int, stride: list[int]) -> Nodes:
    convolution = {"out_channels": channels, "kernel_size": [3, 3], "padding": [1, 1], "bias": False}
    return [
        node(f"{name}.conv", "conv2d", source, stride=stride, **convolution),
        node(f"{name}.bn", "batch_norm", f"{name}.conv"),
        node(f"{name}.relu", "relu", f"{name}.bn"),
    ]


def graphs(relations: int, features: int = 8) -> Document:
    """Inputs of a network on graphs."""
    return {
        "nodes": {"axis": "point", "shape": [features]},
        "edges": {"axis": "edge", "nodes": "nodes", "relations": relations},
    }


def graph_residual(relations: int = 4, width: int = 12) -> Document:
    """Two relational graph convolutions around which the features of nodes go, and one row per graph."""
    nodes = [
        node("stem", "linear", "nodes", out_features=width, activation="relu"),
        node("first", "relational_graph_conv", "stem", "edges", out_channels=20, bias=False),
        node("first_norm", "batch_norm", "first"),
        node("first_relu", "relu", "first_norm"),
        node("second", "relational_graph_conv", "first_relu", "edges", out_channels=width, aggregate="sum"),
        node("sum", "add", "stem", "second"),
        node("y", "leaky_relu", "sum", negative_slope=0.2),
        node("pooled", "global_pool", "y"),
    ]
    return document(graphs(relations), nodes, "y", "pooled")


def vit(width: int = 48, heads: int = 4, layers: int = 2, classes: int = 10) -> Document:
    """A small vision transformer of the zoo whose linear layers are two Kronecker-sparse factors each."""
    sizes = {"image_size": 32, "patch_size": 8, "width": width, "hidden": 4 * width, "heads": heads, "layers": layers}
    network = written(zoo.vit(classes, kronecker=zoo.Part, chains=small_chains(width), **sizes))
    network["outputs"]["logits"] = {}  # which label and probabilities can be held against
    return network


def gpt2_block(width: int = 64, heads: int = 4, tokens: int = 12) -> Document:
    """One small block of the zoo's GPT-2: causal attention and a feed-forward layer of Kronecker-sparse factors."""
    sizes = {"tokens": tokens, "width": width, "hidden": 4 * width, "heads": heads, "layers": 1}
    return written(zoo.gpt2(kronecker=zoo.Part, chains=small_chains(width), **sizes))


def small_chains(width: int) -> zoo.Chains:
    """Two factors a layer, for a hidden layer four times as wide."""
    half = width // 2
    return zoo.Chains(
        attention=[(2, half, half, 1), (1, 2, 2, half)],
        up=[(2, half, half, 1), (1, 8, 2, half)],
        down=[(8, half, half, 1), (1, 2, 8, half)],
    )


def written(graph: Graph) -> Document:
    """The graph as it stands in a model's file."""
    return graph.model_dump(mode="json", exclude_defaults=True)
