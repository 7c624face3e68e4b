"""Gradients of the ops on points and sites, against finite differences in float64, on a cloud of a few points."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lacuna_kernels import Value, parse_graph, random_weights
from lacuna_kernels.model import node_weights
from lacuna_kernels.ops.context import Context
from tests.kernels.networks import cloud, document, node

PLACES = [
    *([0.2, 0.3, 0.4], [0.6, 0.1, 0.9], [1.5, 0.5, 0.5], [2.7, 1.2, 3.1]),  # the first two share a voxel
    *([3.4, 3.6, 1.1], [2.5, 3.3, 1.8], [9.0, 0.5, 0.5]),  # the last is out of range
]
OFFSETS = torch.tensor([0, 4, 4, 7])
GRID = node("grid", "voxelize", "points", voxel_size_m=[1, 1, 1], range_m=[0, 0, 0, 4, 4, 4])
DOWN = node("down", "sparse_conv", "grid", out_channels=3, mode="strided", kernel_size=[2, 2, 2], stride=[2, 2, 2])
OVERLAPPING = {"mode": "strided", "kernel_size": [3, 3, 3], "stride": [2, 2, 2], "padding": [1, 1, 1]}

CASES = {
    "devoxelize nearest": [node("y", "devoxelize", "grid", "grid")],
    "devoxelize trilinear": [node("y", "devoxelize", "grid", "grid", mode="trilinear")],
    "devoxelize a coarser level": [DOWN, node("y", "devoxelize", "down", "grid", mode="trilinear")],
    "point_to_voxel": [node("y", "point_to_voxel", "points", "grid")],
    "sparse_to_bev": [node("y", "sparse_to_bev", "grid")],
    "submanifold": [node("y", "sparse_conv", "grid", out_channels=2, kernel_size=[3, 3, 3], bias=True)],
    "strided": [node("y", "sparse_conv", "grid", out_channels=2, bias=True, **OVERLAPPING)],
    "inverse": [DOWN, node("y", "sparse_conv", "down", out_channels=2, mode="inverse", of="down", bias=True)],
}


@pytest.mark.parametrize("nodes", CASES.values(), ids=CASES)
def test_gradients_are_right(nodes: list[dict[str, Any]]) -> None:
    graph = parse_graph(document(cloud("f"), [GRID, *nodes], "y"))
    weights = {name: weight.double() for name, weight in random_weights(graph, 0).items()}
    features = torch.randn(len(PLACES), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = {"points": Value(torch.cat([torch.tensor(PLACES, dtype=torch.float64), features], 1), OFFSETS)}
    context = Context(graph.types)
    for earlier in graph.nodes[:-1]:
        inputs = [values[name] for name in earlier.inputs]
        values[earlier.name] = earlier.reference(inputs, node_weights(weights, earlier), context)
    last = graph.nodes[-1]
    first, *rest = (values[name] for name in last.inputs)
    own = node_weights(weights, last)

    def result(x: Tensor, *tensors: Tensor) -> Tensor:
        return last.reference([replace(first, data=x), *rest], dict(zip(own, tensors, strict=True)), context).data

    inputs_of_result = tuple(tensor.detach().requires_grad_() for tensor in (first.data, *own.values()))
    gradients = torch.autograd.grad(result(*inputs_of_result).sum(), inputs_of_result)
    assert all(bool(gradient.any()) for gradient in gradients)
    assert torch.autograd.gradcheck(result, inputs_of_result)
