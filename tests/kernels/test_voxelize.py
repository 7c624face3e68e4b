"""Voxels against a plain walk over the points in fp32."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacuna_kernels import GraphError, InputError, Value, parse_graph, walk
from tests.cases import CLOUDS, assert_close, tolerance
from tests.kernels.networks import cloud, document, node

SIZE = (0.1, 0.25, 0.5)


def voxelize(points: Value, **attributes: Any) -> Value:
    grid = node("grid", "voxelize", "points", **({"voxel_size_m": SIZE} | attributes))
    columns = [f"f{index}" for index in range(points.data.shape[1] - 3)]
    return walk(parse_graph(document(cloud(*columns), [grid], "grid")), {}, {"points": points})["grid"]


def points_of(*items: list[tuple[float, ...]]) -> Value:
    rows = [row for item in items for row in item]
    offsets = np.cumsum([0, *map(len, items)])
    return Value(
        torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(rows[0]) if rows else 3),
        torch.from_numpy(offsets),
    )


def by_walking(points: Value, size: tuple[float, ...], origin: tuple[float, ...]) -> dict[tuple[int, ...], list[int]]:
    """The points of every voxel, voxels in the order of their first point; in fp32, as the definition says."""
    voxels: dict[tuple[int, ...], list[int]] = {}
    xyz = points.data[:, :3].numpy()
    position = (xyz - np.float32(origin)) / np.float32(size)
    items = np.repeat(np.arange(points.items), np.diff(points.offsets.numpy()))
    for row, cell in enumerate(np.floor(position).astype(np.int64).tolist()):
        voxels.setdefault((int(items[row]), *cell), []).append(row)
    return voxels


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (-1.3, 0.7, 20.0)], ids=str)
@pytest.mark.parametrize("case", CLOUDS, ids=str)
def test_voxels_are_those_of_a_plain_walk_in_the_order_of_their_first_point(case, origin):
    points = case.value()

    grid = voxelize(points, origin_m=origin)

    expected = by_walking(points, SIZE, origin)
    assert [tuple(site) for site in grid.coordinates.tolist()] == list(expected)
    assert grid.coordinates.dtype == torch.int32
    counts = [sum(1 for voxel in expected if voxel[0] == item) for item in range(points.items)]
    assert grid.offsets.diff().tolist() == counts


@pytest.mark.parametrize("case", CLOUDS, ids=str)
def test_features_are_the_mean_or_the_first_of_the_points(case):
    points = case.value()
    rows = list(by_walking(points, SIZE, (0.0, 0.0, 0.0)).values())
    firsts = points.data[[members[0] for members in rows]].reshape(-1, 4)
    means = [points.data[members].double().mean(0) for members in rows]

    mean, first = voxelize(points), voxelize(points, reduce="first")

    assert torch.equal(first.data, firsts)
    expected = torch.stack(means).float() if means else torch.zeros(0, 4)
    assert_close(mean.data, expected, tolerance(terms=max(map(len, rows), default=1)))


coordinate = st.floats(-100, 100, width=32)
clouds = st.lists(st.lists(st.tuples(coordinate, coordinate, coordinate), max_size=20), min_size=1, max_size=3)


@settings(deadline=None, max_examples=60)
@given(clouds, st.tuples(*[st.floats(0.0625, 9, width=32)] * 3))
def test_any_cloud_and_any_voxel_size(items, size):
    points = points_of(*items)

    grid = voxelize(points, voxel_size_m=size)

    assert [tuple(site) for site in grid.coordinates.tolist()] == list(by_walking(points, size, (0.0, 0.0, 0.0)))


def test_coordinates_below_the_origin_are_negative():
    grid = voxelize(points_of([(-0.01, -0.01, -0.01), (-0.1, 0.0, 0.49)]))

    assert grid.coordinates.tolist() == [[0, -1, -1, -1], [0, -1, 0, 0]]


def test_points_outside_the_range_are_left_out_and_its_upper_end_is_outside():
    points = points_of([(0, 0, 0), (1, 1, 1), (0.999, 0.999, 0.999), (-0.001, 0, 0), (0.5, 2, 0.5)], [(5, 5, 5)])

    grid = voxelize(points, voxel_size_m=[0.5, 0.5, 0.5], range_m=[0, 0, 0, 1, 1, 1])

    assert grid.coordinates.tolist() == [[0, 0, 0, 0], [0, 1, 1, 1]]
    assert grid.offsets.tolist() == [0, 2, 2]


def test_the_lower_corner_of_the_range_is_the_origin():
    grid = voxelize(points_of([(-2, 3, 0.6)]), voxel_size_m=[0.5, 0.5, 0.5], range_m=[-2.5, 2, 0, 0, 4, 1])

    assert grid.coordinates.tolist() == [[0, 1, 2, 1]]


def test_only_a_cloud_itself_has_places_for_its_points():
    nodes = [node("moved", "relu", "points"), node("grid", "voxelize", "moved", voxel_size_m=SIZE)]

    with pytest.raises(GraphError, match=r"'grid'.*needs an input cloud"):
        parse_graph(document(cloud(), nodes, "grid"))


def test_equal_points_make_one_voxel():
    grid = voxelize(points_of([(1.0, 2.0, 3.0, 0.5)] * 7))

    assert len(grid.data) == 1
    assert_close(grid.data, torch.tensor([[1.0, 2.0, 3.0, 0.5]]), tolerance(terms=7))


def test_clouds_without_points_make_no_voxels():
    grid = voxelize(Value(torch.zeros(0, 4), torch.tensor([0, 0, 0])))

    assert grid.data.shape == (0, 4)
    assert grid.coordinates.shape == (0, 4)
    assert grid.offsets.tolist() == [0, 0, 0]


@pytest.mark.parametrize("far", [(2.0**30 * 0.1, 0.0, 0.0), (0.0, -(2.0**30) * 0.25, 0.0), (0.0, 0.0, 1e9)], ids=str)
def test_a_point_too_far_for_int32_is_an_error_that_says_how_far(far):
    with pytest.raises(InputError, match=r"voxels of .* from the origin, node 'grid' takes less than 1073741824"):
        voxelize(points_of([(0, 0, 0), far]))


def test_a_point_that_is_just_near_enough_counts():
    grid = voxelize(points_of([(2.0**30 - 64, 0, 0)]), voxel_size_m=[1, 1, 1])

    assert grid.coordinates.tolist() == [[0, 2**30 - 64, 0, 0]]


def test_a_far_point_outside_the_range_is_no_error():
    grid = voxelize(points_of([(1e30, 0, 0), (0.5, 0.5, 0.5)]), range_m=[0, 0, 0, 1, 1, 1])

    assert len(grid.data) == 1


@pytest.mark.parametrize("reduce", ["mean", "first"])
def test_a_cloud_gives_the_same_bits_alone_and_in_a_batch(reduce):
    points = CLOUDS[1].value()
    together = voxelize(points, reduce=reduce)

    for index in range(points.items):
        first, last = points.offsets[index : index + 2].tolist()
        alone = voxelize(Value(points.data[first:last], torch.tensor([0, last - first])), reduce=reduce)
        start, stop = together.offsets[index : index + 2].tolist()
        assert torch.equal(together.data[start:stop], alone.data)
        assert torch.equal(together.coordinates[start:stop, 1:], alone.coordinates[:, 1:])


def test_gradients_of_the_mean_reach_every_point():
    points = CLOUDS[0].value()
    leaf: Tensor = points.data.clone().requires_grad_()

    voxelize(Value(leaf, points.offsets)).data.sum().backward()

    shares = {row: 1 / len(m) for m in by_walking(points, SIZE, (0.0, 0.0, 0.0)).values() for row in m}
    expected = torch.tensor([shares[row] for row in range(len(leaf))])[:, None].expand(-1, 4)
    assert_close(leaf.grad, expected, tolerance())


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"voxel_size_m": [0.1, 0.0, 0.1]}, "greater than 0"),
        ({"voxel_size_m": [0.1, float("inf"), 0.1]}, "finite"),
        ({"range_m": [0, 0, 0, 1, 1, 1], "origin_m": [1, 0, 0]}, "not both"),
        ({"range_m": [0, 0, 0, 1, -1, 1]}, "holds no voxel"),
        ({"range_m": [-1e9, 0, 0, 1e9, 1, 1]}, "less than 1073741824"),
        ({"range_m": [-1e308, 0, 0, 1e308, 1, 1]}, "less than 1073741824"),
        ({"spatial_shape": [1, 1, 2**30]}, "less than 1073741824"),
    ],
    ids=["zero", "infinite", "range and origin", "empty range", "large range", "endless range", "large shape"],
)
def test_attributes_that_do_not_fit_are_refused(attributes, message):
    with pytest.raises(GraphError, match=f"(?s)'grid'.*{message}"):
        voxelize(points_of([(0, 0, 0)]), **attributes)
