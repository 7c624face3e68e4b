"""Features of sites at points: a gather, and interpolation written out point by point."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lacuna_kernels import GraphError, Value, parse_graph, walk
from tests.cases import CLOUDS, assert_close, tolerance
from tests.kernels.clouds import rows_by_site
from tests.kernels.networks import cloud, document, node

SIZE = (0.4, 0.5, 0.6)
DOWN = {"op": "sparse_conv", "out_channels": 3, "kernel_size": [2, 2, 2], "stride": [2, 2, 2], "mode": "strided"}


def run(points: Value, mode: str, source: str = "grid", **grid: Any) -> dict[str, Value]:
    """The grid, a coarser level `down`, and the features of `source` at the points."""
    nodes = [
        node("grid", "voxelize", "points", **({"voxel_size_m": SIZE} | grid)),
        {"name": "down", "inputs": ["grid"], **DOWN},
        node("y", "devoxelize", source, "grid", mode=mode),
    ]
    weights = {"down.weight": torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(5))}
    graph = parse_graph(document(cloud("f"), nodes, "grid", "down", "y"))
    return walk(graph, weights, {"points": points})


def positions(points: Value, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Item and fp32 position of every point, in steps of the level."""
    items = np.repeat(np.arange(points.items), np.diff(points.offsets.numpy()))
    return items, points.data[:, :3].numpy() / np.float32(SIZE) / np.float32(stride)


def interpolated(points: Value, sites: Value, stride: int) -> Tensor:
    """Trilinear means in float64: missing sites are left out, and the weights of the others scaled to sum 1."""
    rows, result = rows_by_site(sites), []
    for item, position in zip(*positions(points, stride), strict=True):
        total, weights = torch.zeros(sites.data.shape[1], dtype=torch.float64), 0.0
        for step in product((0, 1), repeat=3):
            corner = np.floor(position) + step
            weight = float(np.prod(1 - np.abs(position.astype(np.float64) - corner)))
            row = rows.get((int(item), *map(int, corner)))
            if row is not None:
                total, weights = total + weight * row.double(), weights + weight
        result.append(total / weights if weights > 0 else total)
    return torch.stack(result).float() if result else torch.zeros(0, sites.data.shape[1])


@pytest.mark.parametrize("case", CLOUDS, ids=str)
def test_nearest_gives_every_point_its_voxel(case):
    points = case.value()

    values = run(points, "nearest")

    items, position = positions(points)
    rows = rows_by_site(values["grid"])
    expected = [rows[(int(i), *map(int, np.floor(p)))] for i, p in zip(items, position, strict=True)]
    assert torch.equal(values["y"].data, torch.stack(expected) if expected else torch.zeros(0, 4))
    assert torch.equal(values["y"].offsets, points.offsets)


@pytest.mark.parametrize(("source", "stride"), [("grid", 1), ("down", 2)])
@pytest.mark.parametrize("case", [case for case in CLOUDS if case.name != "far away"], ids=str)
def test_trilinear_is_the_weighted_mean_of_the_sites_around(case, source, stride):
    points = case.value()

    values = run(points, "trilinear", source)

    # the weights 1 - |distance| come out of a subtraction: near zero they keep fewer digits
    assert_close(values["y"].data, interpolated(points, values[source], stride), 64 * tolerance(terms=8))


def test_trilinear_at_a_corner_is_the_site_itself():
    cells = torch.tensor(list(product(range(3), repeat=3)), dtype=torch.float32)
    points = Value(torch.cat([cells, torch.arange(27.0)[:, None]], 1), torch.tensor([0, 27]))

    y = run(points, "trilinear", voxel_size_m=[1, 1, 1])["y"]

    assert torch.equal(y.data, points.data)


@pytest.mark.parametrize("mode", ["nearest", "trilinear"])
def test_a_point_outside_the_range_gets_zeros(mode):
    points = Value(
        torch.tensor([[0.2, 0.2, 0.2, 1.0], [9.0, 9.0, 9.0, 1.0], [-0.01, 0.2, 0.2, 1.0], [3e38, 0.2, 0.2, 1.0]]),
        torch.tensor([0, 4]),
    )

    y = run(points, mode, voxel_size_m=[0.5, 0.5, 0.5], range_m=[0, 0, 0, 4, 4, 4])["y"]

    assert y.data.any(1).tolist() == [True, False, False, False]
    assert y.data.isfinite().all()


@pytest.mark.parametrize("mode", ["nearest", "trilinear"])
def test_no_points_give_no_rows(mode):
    y = run(Value(torch.zeros(0, 4), torch.tensor([0, 0])), mode)["y"]

    assert y.data.shape == (0, 4)


@pytest.mark.parametrize("mode", ["nearest", "trilinear"])
def test_a_cloud_gives_the_same_alone_and_in_a_batch(mode):
    points = CLOUDS[1].value()
    together = run(points, mode)["y"]

    for index in range(points.items):
        first, last = points.offsets[index : index + 2].tolist()
        alone = run(Value(points.data[first:last], torch.tensor([0, last - first])), mode)["y"]
        assert torch.equal(together.data[first:last], alone.data)


def test_nearest_is_refused_on_a_coarser_level():
    with pytest.raises(GraphError, match=r"'y'.*mode nearest needs sites of 'grid', got those of 'down'"):
        run(CLOUDS[0].value(), "nearest", "down")


def test_the_second_input_must_be_the_grid_of_the_sites():
    nodes = [
        node("grid", "voxelize", "points", voxel_size_m=SIZE),
        node("other", "voxelize", "points", voxel_size_m=[1, 1, 1]),
        node("y", "devoxelize", "grid", "other"),
    ]

    with pytest.raises(GraphError, match=r"'y'.*come from grid 'grid', not from 'other'"):
        parse_graph(document(cloud(), nodes, "y"))
