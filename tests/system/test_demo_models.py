"""The shipped models do what their cards say."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from deploy.training import lidar_figures, lidar_scans, train_digits
from deploy.training.training_walk import training_walk

from lacuna_client.simulate import CLASSES, Scan, simulate_scan
from lacuna_kernels import Model, Value, load_model, random_weights, walk
from lacuna_kernels.zoo import dense_mlp
from lacuna_kernels.zoo.draft import Draft

MODELS = Path(__file__).parents[2] / "deploy" / "models"
DIGITS, LIDAR = MODELS / "digits-kronecker", MODELS / "lidar-minkunet"
HELD_OUT_SEEDS = (0, 1, 2)


@cache
def shipped(folder: Path) -> Model:
    return load_model(folder / "1")


@cache
def labelled(seed: int) -> tuple[Scan, np.ndarray]:
    scan, model = simulate_scan(seed), shipped(LIDAR)
    cloud = Value(torch.from_numpy(scan.points), torch.tensor([0, len(scan.points)]))
    with torch.inference_mode():
        return scan, walk(model.graph, model.weights, {"points": cloud})["labels"].data.numpy()


def stated(card: Path, pattern: str) -> float:
    found = re.search(pattern, (card / "README.md").read_text())
    assert found, f"{pattern!r} is not in the card"
    return float(found[1])


def parameters(model: Model) -> int:
    return sum(weight.numel() for name, weight in model.weights.items() if not name.startswith("scale."))


@pytest.mark.parametrize("folder", [DIGITS, LIDAR], ids=lambda folder: folder.name)
def test_a_shipped_model_is_under_4_mb_and_has_a_card(folder):
    assert sum(path.stat().st_size for path in (folder / "1").iterdir()) < 4e6
    assert "## Data" in (folder / "README.md").read_text()


def test_the_repository_holds_nothing_but_models():
    assert {path.name for path in MODELS.iterdir() if path.is_dir()} == {DIGITS.name, LIDAR.name}


def test_digits_are_right_on_the_held_out_fifth_as_the_card_says():
    model, (_, held_out) = shipped(DIGITS), train_digits.split()
    share = 100 * train_digits.accuracy(model.graph, model.weights, held_out)
    assert len(held_out.digits) == 360
    assert share >= 97
    assert share == pytest.approx(stated(DIGITS, r"Kronecker-sparse \(shipped\) \| [\d,]+ \| ([\d.]+) %"), abs=0.3)


def test_digits_have_at_most_half_the_parameters_of_the_dense_twin():
    sparse = shipped(DIGITS)
    dense = dense_mlp(train_digits.WIDTHS, train_digits.CLASSES, normalise=True, names=train_digits.NAMES)
    twin = parameters(Model(dense, random_weights(dense, seed=0)))
    assert [sparse.graph.types[name] for name in ("hidden1", "hidden2", "head")] == [
        dense.types[name] for name in ("hidden1", "hidden2", "head")
    ]
    assert parameters(sparse) <= twin / 2


@pytest.mark.slow
def test_the_dense_twin_trained_the_same_way_is_at_most_a_point_better():
    dense = dense_mlp(train_digits.WIDTHS, train_digits.CLASSES, normalise=True, names=train_digits.NAMES)
    train, held_out = train_digits.split()
    twin = train_digits.accuracy(dense, train_digits.train_model(dense, train, seed=0), held_out)
    model = shipped(DIGITS)
    assert train_digits.accuracy(model.graph, model.weights, held_out) >= twin - 0.01


def test_the_sample_request_is_a_held_out_digit_and_is_read_right():
    (tensor,) = json.loads((DIGITS / "sample.json").read_text())["inputs"]
    pixels = torch.tensor(tensor["data"]).reshape(tensor["shape"])
    _, held_out = train_digits.split()
    assert torch.equal(pixels, held_out.pixels[:1])
    model = shipped(DIGITS)
    result = walk(model.graph, model.weights, {"pixels": Value(pixels)})
    assert int(result["digit"].data[0]) == int(held_out.digits[0])
    assert model.graph.outputs["digit"].classes == tuple("0123456789")


def test_lidar_labels_of_held_out_streets_overlap_the_truth_by_at_least_three_quarters():
    counts = sum(lidar_figures.confusion(scan.labels, labels) for scan, labels in map(labelled, HELD_OUT_SEEDS))
    assert lidar_figures.intersection_over_union(counts).mean() >= 0.78


@pytest.mark.slow
def test_lidar_is_at_least_a_quarter_above_a_per_point_classifier():
    scans = [labelled(seed)[0] for seed in HELD_OUT_SEEDS]
    counts = sum(lidar_figures.confusion(scan.labels, labels) for scan, labels in map(labelled, HELD_OUT_SEEDS))
    per_point = lidar_figures.baseline(scans, training_scans=10, points_each=3000)
    assert lidar_figures.intersection_over_union(counts).mean() >= per_point + 0.25


def test_lidar_finds_the_ground_and_nothing_else_by_the_measure_used_for_real_scans():
    scan, labels = labelled(HELD_OUT_SEEDS[0])
    shares = lidar_figures.real_shares(scan.points, labels)
    assert shares.low >= 0.85
    assert shares.high <= 0.1


def test_lidar_names_and_colours_the_classes_of_the_simulator():
    labels = shipped(LIDAR).graph.outputs["labels"]
    assert labels.classes == CLASSES
    assert labels.colors is not None
    assert len(set(labels.colors)) == len(CLASSES)


def test_lidar_does_not_look_at_where_a_point_is_along_x_and_y():
    stem = shipped(LIDAR).weights["stem1.weight"]
    assert shipped(LIDAR).graph.inputs["points"].columns == ("x", "y", "z", "intensity")
    assert not stem[:, :2].any()
    assert stem[:, 2:].abs().amax() > 0


def test_training_sees_the_same_scans_on_every_run_and_none_that_is_held_out():
    batch = next(lidar_scans.training_batches(size=2, processes=1))
    first = lidar_scans.FIRST_TRAINING_SEED
    assert first > max(HELD_OUT_SEEDS)
    expected = lidar_scans.together([lidar_scans.augmented_scan(seed) for seed in (first, first + 1)])
    assert torch.equal(batch.points.data, expected.points.data)
    assert torch.equal(batch.labels, expected.labels)


def test_the_walk_used_in_training_gives_what_the_reference_gives():
    draft = Draft(points={"axis": "point", "dtype": "fp32", "columns": ["x", "y", "z"]})
    x = draft.add("grid", "voxelize", "points", voxel_size_m=[0.1] * 3)
    fine = draft.add("fine", "sparse_conv", x, out_channels=4, kernel_size=[3, 3, 3])
    y = draft.add("down", "sparse_conv", fine, out_channels=5, kernel_size=[2] * 3, stride=[2] * 3, mode="strided")
    y = draft.add("coarse", "sparse_conv", draft.add("relu", "relu", y), out_channels=5, kernel_size=[3, 3, 3])
    y = draft.add("up", "sparse_conv", y, out_channels=4, mode="inverse", of="down")
    y = draft.add("single", "sparse_conv", y, out_channels=4, kernel_size=[1, 1, 1])
    draft.add("logits", "devoxelize", draft.add("sum", "add", y, fine), "grid")
    graph = draft.graph(logits={})
    generator = torch.Generator().manual_seed(0)
    points = Value(torch.rand(300, 3, generator=generator) * 2 - 1, torch.tensor([0, 180, 180, 300]))
    weights = {name: weight.requires_grad_() for name, weight in random_weights(graph, seed=1).items()}
    expected = walk(graph, weights, {"points": points})["logits"].data
    found = training_walk(graph, weights, {"points": points}, torch.float32)["logits"].data
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    direction = torch.randn(expected.shape, generator=generator)
    wanted = torch.autograd.grad((expected * direction).sum(), list(weights.values()))
    given = torch.autograd.grad((found * direction).sum(), list(weights.values()))
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)
