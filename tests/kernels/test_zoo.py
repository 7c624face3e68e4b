"""The builders make the networks that their names promise, and these run."""

import pytest
import torch

from lacuna_kernels import Axis, DType, Graph, Value, collate, random_weights, split, walk
from lacuna_kernels.errors import GraphError
from lacuna_kernels.ops.image import Conv2d
from lacuna_kernels.ops.kronecker_linear import KroneckerLinear
from lacuna_kernels.ops.sparse_conv import SparseConv
from lacuna_kernels.zoo import NECK_CHANNELS, centerpoint_encoder, dense_mlp, kronecker_mlp, minkunet, spvcnn

SMALL = (4, 4, 6, 8, 8, 8, 6, 4, 4)


def convolutions(graph: Graph) -> list[SparseConv]:
    return [node for node in graph.nodes if isinstance(node, SparseConv)]


def parameters(graph: Graph) -> int:
    return sum(torch.Size(shape).numel() for shape in graph.weight_shapes().values())


def cloud(points: int, seed: int, columns: int = 4, spread_m: float = 3.0) -> dict[str, Value]:
    generator = torch.Generator().manual_seed(seed)
    data = (torch.rand(points, columns, generator=generator) - 0.5) * spread_m
    return {"points": Value(data, torch.tensor([0, points]))}


def assert_batch_equals_each_alone(graph: Graph, clouds: list[dict[str, Value]]) -> None:
    weights = random_weights(graph, seed=1)
    together = split(walk(graph, weights, collate(clouds)), [1] * len(clouds))
    for alone, part in zip(clouds, together, strict=True):
        for name, value in walk(graph, weights, alone).items():
            torch.testing.assert_close(part[name].data, value.data, rtol=1e-4, atol=1e-5)


def test_default_minkunet_has_49_convolutions_and_21_7_million_parameters():
    graph = minkunet(19)
    assert len(convolutions(graph)) == 49
    assert round(parameters(graph) / 1e6, 1) == 21.7  # as SPVNAS reports for MinkUNet
    assert graph.output_types["labels"].axis is Axis.POINT
    assert graph.output_types["labels"].dtype is DType.INT32


@pytest.mark.parametrize(("blocks", "count"), [((2,) * 8, 49), ((2, 3, 4, 6, 2, 2, 2, 2), 63), ((1,) * 8, 33)])
def test_depth_of_minkunet_is_free(blocks, count):
    assert len(convolutions(minkunet(19, blocks=blocks))) == count


def test_width_scales_every_channel_of_minkunet():
    half = convolutions(minkunet(5, width=0.5))
    assert [node.out_channels * 2 for node in half] == [node.out_channels for node in convolutions(minkunet(5))]


def test_minkunet_joins_each_level_with_the_way_down():
    graph = minkunet(19)
    joined = {f"up{level}_joined": graph.types[f"up{level}_joined"] for level in (1, 2, 3, 4)}
    assert [kind.channels for kind in joined.values()] == [384, 192, 128, 128]
    assert [kind.level.stride[0] for kind in joined.values()] == [8, 4, 2, 1]


@pytest.mark.parametrize("wrong", [{"channels": (32, 32)}, {"blocks": (2, 2)}])
def test_minkunet_of_other_than_four_levels_is_refused(wrong):
    with pytest.raises(ValueError, match="needs 9 channels and 8 blocks"):
        minkunet(19, **wrong)


def test_minkunet_names_and_colours_its_classes():
    graph = minkunet(["ground", "other"], SMALL, colors=[(0, 0, 0), (255, 0, 0)], scores=True)
    assert graph.outputs["labels"].classes == graph.outputs["scores"].classes == ("ground", "other")
    assert graph.outputs["labels"].colors == ((0, 0, 0), (255, 0, 0))
    assert graph.outputs["scores"].colors is None


def test_minkunet_scores_sum_to_one_and_point_to_the_labels():
    graph = minkunet(5, SMALL, voxel_size_m=0.1, scores=True)
    result = walk(graph, random_weights(graph, seed=2), cloud(300, seed=3))
    torch.testing.assert_close(result["scores"].data.sum(1), torch.ones(300))
    assert torch.equal(result["scores"].data.argmax(1).int(), result["labels"].data)
    assert len(result["labels"].data.unique()) > 1


def test_minkunet_on_a_ragged_batch_equals_each_cloud_alone():
    graph = minkunet(5, SMALL, (1,) * 8, voxel_size_m=0.1, scores=True)
    assert_batch_equals_each_alone(graph, [cloud(200, seed=4), cloud(0, seed=5), cloud(1, seed=6), cloud(90, seed=7)])


def test_minkunet_takes_other_columns():
    graph = minkunet(3, SMALL, columns=("x", "y", "z", "red", "green", "blue"), voxel_size_m=(0.02, 0.02, 0.02))
    assert walk(graph, random_weights(graph, 0), cloud(20, 1, columns=6))["labels"].data.shape == (20,)


def test_default_spvcnn_has_49_convolutions_and_21_8_million_parameters():
    graph = spvcnn(19)
    assert len(convolutions(graph)) == 49
    assert round(parameters(graph) / 1e6, 1) == 21.8  # as SPVNAS reports for SPVCNN
    assert graph.output_types["labels"].axis is Axis.POINT


def test_spvcnn_goes_through_the_points_four_times():
    graph = spvcnn(19)
    points = [graph.types[f"points{turn}"] for turn in range(4)]
    assert [kind.axis for kind in points] == [Axis.POINT] * 4
    assert [kind.channels for kind in points] == [32, 256, 128, 96]
    assert [graph.types[f"voxels{turn}"].level.stride[0] for turn in range(3)] == [1, 16, 4]


def test_points_of_one_voxel_differ_in_spvcnn_and_not_in_minkunet():
    near = {"points": Value(torch.tensor([[0.01, 0.01, 0.01, 0.2], [0.09, 0.02, 0.01, 0.2], [0.15, 0.05, 0.05, 0.4]]),
                            torch.tensor([0, 3]))}  # fmt: skip
    differ = {}
    for build in (minkunet, spvcnn):
        graph = build(5, SMALL, voxel_size_m=0.1, scores=True)
        first, second, _ = walk(graph, random_weights(graph, seed=1), near)["scores"].data
        differ[build] = not torch.equal(first, second)
    assert differ == {minkunet: False, spvcnn: True}


def test_spvcnn_on_a_ragged_batch_equals_each_cloud_alone():
    graph = spvcnn(5, SMALL, (1,) * 8, voxel_size_m=0.1, scores=True)
    assert_batch_equals_each_alone(graph, [cloud(200, seed=4), cloud(0, seed=5), cloud(1, seed=6), cloud(90, seed=7)])


def test_centerpoint_encoder_shrinks_the_grid_as_the_original_does():
    graph = centerpoint_encoder()
    shapes = [node.level.spatial_shape for name in ("grid", "down2", "down3", "down4", "flatten")
              if (node := graph.types[name]).level]  # fmt: skip
    assert shapes == [(1440, 1440, 41), (720, 720, 21), (360, 360, 11), (180, 180, 5), (180, 180, 2)]
    assert len(convolutions(graph)) == 21
    assert graph.output_types["features"].axis is Axis.SITE
    assert graph.output_types["features"].channels == 128


def test_centerpoint_encoder_on_a_ragged_batch_equals_each_cloud_alone():
    graph = centerpoint_encoder(channels=(4, 6, 8, 8), range_m=(-6.0, -6.0, -5.0, 6.0, 6.0, 3.0))
    clouds = [cloud(150, seed=seed, columns=5, spread_m=14.0) for seed in (1, 2)]
    assert_batch_equals_each_alone(graph, clouds)


def test_centerpoint_neck_joins_two_scales_of_the_birds_eye_view():
    graph = centerpoint_encoder(neck=NECK_CHANNELS)
    assert graph.types["bev"].shape == (256, 180, 180)
    assert graph.types["scale2_conv6"].shape == (256, 90, 90)
    assert graph.output_types["neck"].shape == (512, 180, 180)
    assert sum(isinstance(node, Conv2d) for node in graph.nodes) == 2 * (1 + 5) + 2


def test_centerpoint_neck_on_a_ragged_batch_equals_each_cloud_alone():
    range_m = (-4.8, -4.8, -5.0, 4.8, 4.8, 3.0)
    graph = centerpoint_encoder(channels=(4, 6, 8, 8), range_m=range_m, neck=(4, 6))
    clouds = [cloud(150, seed=1, columns=5, spread_m=9.0), cloud(0, seed=2, columns=5)]
    assert graph.output_types["neck"].shape == (12, 16, 16)
    assert_batch_equals_each_alone(graph, clouds)


def test_centerpoint_neck_of_a_view_that_does_not_halve_is_refused():
    with pytest.raises(GraphError, match="neck"):
        centerpoint_encoder(range_m=(-4.5, -4.5, -5.0, 4.5, 4.5, 3.0), neck=(4, 6))


def test_kronecker_mlp_has_the_widths_and_a_fraction_of_the_parameters_of_its_dense_twin():
    layers = [[(1, 16, 8, 8), (8, 16, 16, 1)], [(8, 16, 16, 1), (1, 8, 8, 16)]]
    sparse, dense = kronecker_mlp(layers, 10), dense_mlp([64, 128, 128], 10)
    assert [sparse.types[name].shape for name in ("hidden1", "hidden2", "head")] == [(128,), (128,), (10,)]
    assert [dense.types[name].shape for name in ("hidden1", "hidden2", "head")] == [(128,), (128,), (10,)]
    assert parameters(sparse) < parameters(dense) / 2
    assert sum(isinstance(node, KroneckerLinear) for node in sparse.nodes) == 2


def test_mlps_run_and_their_probabilities_sum_to_one():
    names = ("pixels", "digit", "probabilities")
    for graph in (
        kronecker_mlp([[(2, 4, 3, 4)]], ["a", "b"], normalise=True, names=names),
        dense_mlp([24, 32], ["a", "b"], normalise=True, names=names),
    ):
        rows = torch.randn(7, 24, generator=torch.Generator().manual_seed(0))
        result = walk(graph, random_weights(graph, seed=1), {"pixels": Value(rows)})
        torch.testing.assert_close(result["probabilities"].data.sum(1), torch.ones(7))
        assert torch.equal(result["probabilities"].data.argmax(1).int(), result["digit"].data)
        assert graph.outputs["digit"].classes == ("a", "b")


def test_kronecker_mlp_whose_factors_do_not_fit_is_refused():
    with pytest.raises(GraphError, match="hidden1"):
        kronecker_mlp([[(1, 16, 8, 8), (8, 16, 8, 1)]], 10)
