"""Small model folders, made on the fly: rows, clouds, and one that answers sites."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lacuna_kernels import Graph, Model, parse_graph, random_weights, save_model
from lacuna_kernels.zoo import kronecker_mlp, minkunet, rgcn

CLASSES = ("road", "building", "person")
COLOURS = ((90, 90, 90), (200, 120, 60), (250, 30, 30))
FEATURES = 16


def tiny_kronecker() -> Graph:
    """Rows of 16 features to `label` and `probabilities` of 4 classes; the input is `x`."""
    return kronecker_mlp([[(4, 4, 4, 1), (1, 4, 4, 4)]], 4, names=("x", "label", "probabilities"))


def tiny_minkunet() -> Graph:
    """Clouds of x, y, z, intensity to `labels` and `scores` of 3 named classes."""
    return minkunet(CLASSES, (4,) * 9, (1,) * 8, voxel_size_m=0.2, colors=COLOURS, scores=True)


def tiny_encoder() -> Graph:
    """Clouds to `features` of their voxels, and `embedding` of each whole cloud."""
    document: dict[str, Any] = {
        "format": 1,
        "inputs": {"points": {"axis": "point", "columns": ["x", "y", "z"]}},
        "nodes": [
            {"name": "grid", "op": "voxelize", "inputs": ["points"], "voxel_size_m": [0.5, 0.5, 0.5]},
            {"name": "features", "op": "linear", "inputs": ["grid"], "out_features": 4},
            {"name": "embedding", "op": "global_pool", "inputs": ["features"], "mode": "mean"},
        ],
        "outputs": {"features": {}, "embedding": {}},
    }
    return parse_graph(document)


def tiny_rgcn() -> Graph:
    """Graphs with 5 features a node and 3 kinds of edges to `label` and `probabilities` of 3 named classes a node."""
    return rgcn(CLASSES, 5, 3, hidden=4)


def save(graph: Graph, folder: Path, seed: int = 0) -> Path:
    """Write a graph with random weights, and return its folder."""
    save_model(Model(graph, random_weights(graph, seed)), folder)
    return folder


def fill_repository(root: Path) -> Path:
    """Two models: rows `tiny-kronecker` in versions 1 and 2, and clouds `tiny-minkunet`."""
    for version in (1, 2):
        save(tiny_kronecker(), root / "tiny-kronecker" / str(version), seed=version)
    save(tiny_minkunet(), root / "tiny-minkunet" / "1")
    return root


def rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Rows for tiny-kronecker."""
    return np.random.default_rng(seed).normal(size=(count, FEATURES)).astype(np.float32)


def cloud(count: int, seed: int = 0, columns: int = 4) -> NDArray[np.float32]:
    """A cloud for tiny-minkunet: a few metres across, in metres."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-2, 2, size=(count, columns)).astype(np.float32)
    points[:, 3:] = np.abs(points[:, 3:]) / 2
    return points


def edges(count: int, nodes: int, seed: int = 0) -> NDArray[np.int32]:
    """Edges for tiny-rgcn: source, target, relation."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, most, count) for most in (nodes, nodes, 3)], 1).astype(np.int32)


def tensor(array: NDArray[Any]) -> torch.Tensor:
    """The array as a tensor of its own memory."""
    return torch.from_numpy(array.copy())
