"""Sparse convolution against dense convolutions of torch on small grids, in every mode."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from lacuna_kernels import GraphError, Value, parse_graph, walk
from lacuna_kernels.ops.sparse_conv import gather_multiply_add
from tests.cases import assert_close, tolerance
from tests.kernels.clouds import Triple, cells, cloud_at, rows_by_site, triples
from tests.kernels.networks import cloud, document, node

CHANNELS, OUT = 5, 3  # x, y, z and two features
AXES = range(3)
clouds = st.lists(cells(), min_size=1, max_size=3)


def run(points: Value, nodes: list[dict[str, Any]], weights: dict[str, Tensor], **grid: Any) -> dict[str, Value]:
    """Every node's value, over the voxels of unit size."""
    voxels = node("grid", "voxelize", "points", voxel_size_m=[1, 1, 1], **grid)
    names = ["grid", *[n["name"] for n in nodes]]
    return walk(parse_graph(document(cloud("f", "g"), [voxels, *nodes], *names)), weights, {"points": points})


def weight(size: Triple, ci: int = CHANNELS, co: int = OUT, seed: int = 1) -> Tensor:
    return torch.randn(size[0] * size[1] * size[2], ci, co, generator=torch.Generator().manual_seed(seed))


def dense_weight(weight: Tensor, size: Triple) -> Tensor:
    """[k, ci, co] with z fastest in k, as torch has it: [co, ci, Kx, Ky, Kz] in float64."""
    return weight.double().reshape(*size, *weight.shape[1:]).permute(4, 3, 0, 1, 2)


@dataclass(frozen=True)
class Box:
    """A dense piece of the grid, from cell `low` on: float64 [items, channels, X, Y, Z]."""

    data: Tensor
    low: Triple

    @classmethod
    def around(cls, sites: Value, low: Triple, high: Triple) -> "Box":
        sizes = [high[a] - low[a] + 1 for a in AXES]
        data = torch.zeros(sites.items, sites.data.shape[1], *sizes, dtype=torch.float64)
        item, x, y, z = (sites.coordinates.long() - torch.tensor([0, *low])).T
        data[item, :, x, y, z] = sites.data.double()
        return cls(data, low)

    def at(self, site: tuple[int, ...]) -> Tensor:
        item, *cell = site
        x, y, z = (cell[a] - self.low[a] for a in AXES)
        return self.data[item, :, x, y, z]

    @property
    def occupied(self) -> set[tuple[int, ...]]:
        found = self.data.ne(0).any(1).nonzero().tolist()
        return {(item, *(cell[a] + self.low[a] for a in AXES)) for item, *cell in found}


def with_mask(sites: Value) -> Value:
    """The same sites, each with the one feature 1."""
    return Value(torch.ones(len(sites.data), 1), sites.offsets, sites.coordinates)


def strided(sites: Value, weight: Tensor, size: Triple, stride: Triple, padding: Triple, dilation: Triple) -> Box:
    """Dense convolution of all of space: a box that starts so that output o reads from o*stride - padding on."""
    reach = [(size[a] - 1) * dilation[a] for a in AXES]
    before = [-((-6 - reach[a]) // stride[a]) + 2 for a in AXES]  # outputs below zero that may be reached
    low = tuple(-padding[a] - before[a] * stride[a] for a in AXES)
    high = tuple(12 + reach[a] + 2 * stride[a] for a in AXES)
    box = Box.around(sites, low, high)
    out = functional.conv3d(box.data, dense_weight(weight, size), stride=stride, dilation=dilation)
    return Box(out, tuple(-before[a] for a in AXES))


def transposed(sites: Value, weight: Tensor, size: Triple, stride: Triple, padding: Triple, dilation: Triple) -> Box:
    """Dense transposed convolution of all of space: site i leads to the outputs from i*stride - padding on."""
    low = -12
    box = Box.around(sites, (low,) * 3, (12,) * 3)
    kernel = dense_weight(weight, size).transpose(0, 1)
    out = functional.conv_transpose3d(box.data, kernel, stride=stride, dilation=dilation)
    return Box(out, tuple(low * stride[a] - padding[a] for a in AXES))


def assert_agrees(actual: Value, dense: Box, terms: int) -> None:
    sites = list(rows_by_site(actual))
    expected = torch.stack([dense.at(site) for site in sites]) if sites else torch.zeros(0, actual.data.shape[1])
    assert_close(actual.data, expected.float(), tolerance(terms=terms))


@settings(deadline=None, max_examples=40)
@given(clouds, triples(0, 2), triples(1, 2))
def test_submanifold_is_a_dense_convolution_at_the_sites(items, halves, dilation):
    size = tuple(2 * half + 1 for half in halves)
    w = weight(size)
    conv = node("y", "sparse_conv", "grid", out_channels=OUT, kernel_size=size, dilation=dilation)

    values = run(cloud_at(items), [conv], {"y.weight": w})

    padding = tuple(dilation[a] * halves[a] for a in AXES)
    assert torch.equal(values["y"].coordinates, values["grid"].coordinates)
    assert_agrees(values["y"], strided(values["grid"], w, size, (1, 1, 1), padding, dilation), len(w) * CHANNELS)


@settings(deadline=None, max_examples=40)
@given(clouds, triples(1, 4), triples(1, 3), triples(0, 2), triples(1, 2))
def test_strided_is_a_dense_convolution_at_all_sites_it_reaches(items, size, stride, padding, dilation):
    w, shape = weight(size), {"kernel_size": size, "stride": stride, "padding": padding, "dilation": dilation}
    conv = node("y", "sparse_conv", "grid", out_channels=OUT, mode="strided", **shape)

    values = run(cloud_at(items), [conv], {"y.weight": w})

    reached = strided(with_mask(values["grid"]), torch.ones(len(w), 1, 1), size, stride, padding, dilation)
    assert set(rows_by_site(values["y"])) == reached.occupied
    assert_agrees(values["y"], strided(values["grid"], w, size, stride, padding, dilation), len(w) * CHANNELS)


@settings(deadline=None, max_examples=40)
@given(clouds, triples(1, 4), triples(1, 3), triples(0, 1), triples(1, 2))
def test_strided_with_floor_sites_is_a_dense_convolution_at_floors(items, size, stride, padding, dilation):
    w, shape = weight(size), {"kernel_size": size, "stride": stride, "padding": padding, "dilation": dilation}
    conv = node("y", "sparse_conv", "grid", out_channels=OUT, mode="strided", sites="floor", **shape)

    values = run(cloud_at(items), [conv], {"y.weight": w})

    floors = [(item, *(cell[a] // stride[a] for a in AXES)) for item, *cell in values["grid"].coordinates.tolist()]
    assert list(rows_by_site(values["y"])) == list(dict.fromkeys(floors))
    assert_agrees(values["y"], strided(values["grid"], w, size, stride, padding, dilation), len(w) * CHANNELS)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(cells(0, 5), min_size=1, max_size=3),
    triples(6, 9),
    triples(1, 4),
    triples(1, 3),
    triples(0, 2),
    st.booleans(),
)
def test_a_spatial_shape_bounds_the_outputs_as_in_a_dense_convolution(items, cells_of, size, stride, padding, on_grid):
    out_shape = [(cells_of[a] + 2 * padding[a] - size[a]) // stride[a] + 1 for a in AXES]
    assume(min(out_shape) >= 1)
    w, bounds = weight(size), {"spatial_shape": cells_of}
    conv = node("y", "sparse_conv", "grid", out_channels=OUT, mode="strided", kernel_size=size, stride=stride)
    conv |= {"padding": padding} | ({} if on_grid else bounds)

    values = run(cloud_at(items), [conv], {"y.weight": w}, **(bounds if on_grid else {}))

    high = tuple(n - 1 for n in cells_of)
    boxes = [Box.around(sites, (0, 0, 0), high).data for sites in (with_mask(values["grid"]), values["grid"])]
    ones = dense_weight(torch.ones(len(w), 1, 1), size)
    reached = Box(functional.conv3d(boxes[0], ones, stride=stride, padding=padding), (0, 0, 0))
    dense = Box(functional.conv3d(boxes[1], dense_weight(w, size), stride=stride, padding=padding), (0, 0, 0))
    assert list(reached.data.shape[2:]) == out_shape
    assert set(rows_by_site(values["y"])) == reached.occupied
    assert_agrees(values["y"], dense, len(w) * CHANNELS)


@settings(deadline=None, max_examples=40)
@given(clouds, triples(1, 3), triples(1, 3), triples(0, 1), triples(1, 2), st.sampled_from(["contributing", "floor"]))
def test_inverse_is_a_dense_transposed_convolution_at_the_restored_sites(items, size, stride, padding, dilation, rule):
    shape = {"kernel_size": size, "stride": stride, "padding": padding, "dilation": dilation, "sites": rule}
    down = node("down", "sparse_conv", "grid", out_channels=OUT, mode="strided", **shape)
    up = node("up", "sparse_conv", "down", out_channels=4, mode="inverse", of="down")
    w = weight(size, OUT, 4, seed=2)

    values = run(cloud_at(items), [down, up], {"down.weight": weight(size), "up.weight": w})

    assert torch.equal(values["up"].coordinates, values["grid"].coordinates)
    assert_agrees(values["up"], transposed(values["down"], w, size, stride, padding, dilation), len(w) * OUT)


@settings(deadline=None, max_examples=40)
@given(clouds, triples(1, 4), triples(1, 3), triples(0, 2), triples(1, 2))
def test_generative_is_a_dense_transposed_convolution_at_all_sites_it_reaches(items, size, stride, padding, dilation):
    down = node("down", "sparse_conv", "grid", out_channels=OUT, mode="strided", kernel_size=stride, stride=stride)
    shape = {"kernel_size": size, "stride": stride, "padding": padding, "dilation": dilation}
    up = node("up", "sparse_conv", "down", out_channels=4, mode="generative", **shape)
    w = weight(size, OUT, 4, seed=2)

    values = run(cloud_at(items), [down, up], {"down.weight": weight(stride), "up.weight": w})

    reached = transposed(with_mask(values["down"]), torch.ones(len(w), 1, 1), size, stride, padding, dilation)
    assert set(rows_by_site(values["up"])) == reached.occupied
    assert_agrees(values["up"], transposed(values["down"], w, size, stride, padding, dilation), len(w) * OUT)


@settings(deadline=None, max_examples=40)
@given(st.lists(cells(0, 5), min_size=1, max_size=3), triples(1, 4), triples(1, 2), triples(0, 2))
def test_a_spatial_shape_bounds_what_is_generated_as_in_a_dense_transposed_convolution(items, size, stride, padding):
    bounds = tuple(-(-6 // stride[a]) for a in AXES)  # of the level below
    out_shape = [(bounds[a] - 1) * stride[a] - 2 * padding[a] + size[a] for a in AXES]
    assume(min(out_shape) >= 1)
    floors = {"kernel_size": stride, "stride": stride, "sites": "floor"}
    down = node("down", "sparse_conv", "grid", out_channels=OUT, mode="strided", **floors)
    shape = {"kernel_size": size, "stride": stride, "padding": padding, "spatial_shape": bounds}
    up = node("up", "sparse_conv", "down", out_channels=4, mode="generative", **shape)
    w = weight(size, OUT, 4, seed=2)

    values = run(cloud_at(items), [down, up], {"down.weight": weight(stride), "up.weight": w})

    high = tuple(n - 1 for n in bounds)
    ones, kernel = (dense_weight(of, size).transpose(0, 1) for of in (torch.ones(len(w), 1, 1), w))
    boxes = [Box.around(sites, (0, 0, 0), high).data for sites in (with_mask(values["down"]), values["down"])]
    reached = Box(functional.conv_transpose3d(boxes[0], ones, stride=stride, padding=padding), (0, 0, 0))
    dense = Box(functional.conv_transpose3d(boxes[1], kernel, stride=stride, padding=padding), (0, 0, 0))
    assert list(reached.data.shape[2:]) == out_shape
    assert set(rows_by_site(values["up"])) == reached.occupied
    assert_agrees(values["up"], dense, len(w) * OUT)


def test_a_generated_level_may_be_convolved_and_halved_again():
    shape = {"out_channels": OUT, "kernel_size": [2, 2, 2], "stride": [2, 2, 2]}
    nodes = [
        node("down", "sparse_conv", "grid", mode="strided", **shape),
        node("up", "sparse_conv", "down", mode="generative", **shape),
        node("y", "sparse_conv", "up", out_channels=OUT, kernel_size=[3, 3, 3]),
        node("again", "sparse_conv", "y", mode="strided", **shape),
        node("back", "sparse_conv", "again", out_channels=OUT, mode="inverse", of="again"),
    ]
    weights = {
        f"{n}.weight": weight((2, 2, 2), CHANNELS if n == "down" else OUT) for n in ("down", "up", "again", "back")
    }

    values = run(cloud_at([[(0, 0, 0), (5, 5, 5)]]), nodes, weights | {"y.weight": weight((3, 3, 3), OUT)})

    assert len(values["up"].data) == 8 * len(values["down"].data)
    assert torch.equal(values["again"].coordinates, values["down"].coordinates)
    assert torch.equal(values["back"].coordinates, values["up"].coordinates)


def test_two_levels_down_and_up_come_back_to_the_same_sites():
    points = cloud_at([list(product(range(-5, 4), range(-2, 3), range(3))), [(0, 0, 0)]])
    shape = {"kernel_size": [2, 2, 2], "stride": [2, 2, 2], "mode": "strided", "out_channels": OUT}
    nodes = [
        node("one", "sparse_conv", "grid", **shape),
        node("two", "sparse_conv", "one", **shape),
        node("back", "sparse_conv", "two", out_channels=OUT, mode="inverse", of="two"),
        node("home", "sparse_conv", "back", out_channels=OUT, mode="inverse", of="one"),
    ]
    weights = {
        f"{n}.weight": weight((2, 2, 2), CHANNELS if n == "one" else OUT) for n in ("one", "two", "back", "home")
    }

    values = run(points, nodes, weights)

    assert torch.equal(values["back"].coordinates, values["one"].coordinates)
    assert torch.equal(values["home"].coordinates, values["grid"].coordinates)
    assert len(values["two"].data) < len(values["one"].data) < len(values["grid"].data)


def test_a_strided_convolution_of_stride_one_shares_no_map_with_the_submanifold_ones_after_it():
    shape = {"out_channels": OUT, "kernel_size": [3, 3, 3]}
    spread = node("spread", "sparse_conv", "grid", mode="strided", padding=[1, 1, 1], **shape)
    conv = node("y", "sparse_conv", "spread", **shape)
    first, w, ones = weight((3, 3, 3)), weight((3, 3, 3), OUT), (1, 1, 1)

    values = run(cloud_at([[(0, 0, 0), (2, 1, 0)]]), [spread, conv], {"spread.weight": first, "y.weight": w})

    assert len(values["spread"].data) > len(values["grid"].data)
    assert_agrees(values["y"], strided(values["spread"], w, (3, 3, 3), ones, ones, ones), len(w) * OUT)


def test_strides_that_pass_the_largest_coordinate_are_refused():
    halvings = {"out_channels": OUT, "mode": "strided", "kernel_size": [1, 1, 1], "stride": [64, 1, 1]}
    nodes = [node(f"y{i}", "sparse_conv", f"y{i - 1}" if i else "grid", **halvings) for i in range(6)]

    with pytest.raises(GraphError, match=r"'y4'.*stride.*less than 1073741824"):
        run(cloud_at([[(0, 0, 0)]]), nodes, {})


def test_bias_and_activation_come_after_the_sum():
    conv = node("y", "sparse_conv", "grid", out_channels=OUT, kernel_size=[3, 3, 3])
    finished = conv | {"name": "z", "bias": True, "activation": "relu"}
    w, bias = weight((3, 3, 3)), torch.tensor([0.5, -0.5, 0.0])

    values = run(cloud_at([[(0, 0, 0), (1, 0, 0)]]), [conv, finished], {"y.weight": w, "z.weight": w, "z.bias": bias})

    assert_close(values["z"].data, torch.relu(values["y"].data + bias), tolerance())


@pytest.mark.parametrize("mode", ["submanifold", "strided", "generative"])
def test_no_sites_give_no_sites(mode):
    conv = node("y", "sparse_conv", "grid", out_channels=OUT, kernel_size=[3, 3, 3], mode=mode)

    y = run(cloud_at([[], []]), [conv], {"y.weight": weight((3, 3, 3))})["y"]

    assert y.data.shape == (0, OUT)
    assert y.offsets.tolist() == [0, 0, 0]


@settings(deadline=None, max_examples=40)
@given(clouds, triples(1, 3), triples(1, 2), st.sampled_from(["strided", "generative"]))
def test_a_cloud_gives_the_same_alone_and_in_a_batch(items, size, stride, mode):
    by = {"stride": stride} if mode == "strided" else {}
    conv = node("y", "sparse_conv", "grid", out_channels=OUT, mode=mode, kernel_size=size, **by)
    points, weights = cloud_at(items), {"y.weight": weight(size)}
    together = run(points, [conv], weights)["y"]

    for index in range(len(items)):
        first, last = points.offsets[index : index + 2].tolist()
        alone = run(Value(points.data[first:last], torch.tensor([0, last - first])), [conv], weights)["y"]
        start, stop = together.offsets[index : index + 2].tolist()
        assert torch.equal(together.coordinates[start:stop, 1:], alone.coordinates[:, 1:])
        assert_close(together.data[start:stop], alone.data, tolerance(terms=len(weights["y.weight"]) * CHANNELS))


def test_gradients_are_right():
    kernel_map = torch.tensor([[0, -1, 2, 1], [-1, -1, 0, 3], [3, 2, -1, -1]])
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x, w: gather_multiply_add(x, w, kernel_map), (x, w))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"kernel_size": [2, 3, 3]}, "odd kernel_size"),
        ({}, "needs kernel_size"),
        ({"kernel_size": [3, 3, 3], "stride": [2, 2, 2]}, "takes no stride"),
        ({"kernel_size": [3, 3, 3], "of": "grid"}, "takes no `of`"),
        ({"mode": "inverse"}, "names the strided node"),
        ({"mode": "inverse", "of": "grid"}, "undoes 'grid'"),
        ({"mode": "inverse", "of": "grid", "kernel_size": [2, 2, 2]}, "takes no kernel_size"),
        ({"mode": "generative"}, "needs kernel_size"),
        ({"mode": "generative", "kernel_size": [3, 3, 3], "sites": "floor"}, "takes no sites"),
        ({"mode": "generative", "kernel_size": [2, 2, 2], "stride": [2, 1, 1]}, "does not divide"),
        (
            {"mode": "generative", "kernel_size": [1, 1, 1], "padding": [2, 0, 0], "spatial_shape": [4, 9, 9]},
            "leaves none",
        ),
        ({"mode": "strided", "kernel_size": [3, 3, 3], "spatial_shape": [2, 9, 9]}, "leaves none"),
        ({"mode": "strided", "kernel_size": [1, 1, 1], "spatial_shape": [2**31 - 1, 9, 9]}, "less than 1073741824"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_attributes_that_do_not_fit_are_refused(attributes, message):
    with pytest.raises(GraphError, match=f"(?s)'y'.*{message}"):
        run(cloud_at([[(0, 0, 0)]]), [node("y", "sparse_conv", "grid", out_channels=OUT, **attributes)], {})


def test_only_a_strided_convolution_can_be_undone():
    made = node("made", "sparse_conv", "grid", out_channels=OUT, mode="generative", kernel_size=[3, 3, 3])
    back = node("back", "sparse_conv", "made", out_channels=OUT, mode="inverse", of="made")

    with pytest.raises(GraphError, match=r"(?s)'back'.*no strided"):
        run(cloud_at([[(0, 0, 0)]]), [made, back], {})
