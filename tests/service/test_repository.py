"""The model repository: what counts as a model, what is refused, and that nothing leads out."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lacuna_kernels import Precision, parse_graph
from lacuna_service.config import parse_config
from lacuna_service.repository import BrokenModel, Repository
from tests.service.serving_cases import CLOUDS, ROWS, write_model


def test_versions_are_positive_integers_in_their_order(tmp_path):
    for version in (9, 10, 2):
        write_model(tmp_path, "m", version)
    for other in ("0", "-1", "01", "latest", "²", "1.5", ".hidden", "figures", "9999999999"):
        (tmp_path / "m" / other).mkdir()
    (tmp_path / "m" / "3").write_text("a file")

    assert Repository(tmp_path).versions("m") == [2, 9, 10]


def test_files_and_hidden_folders_are_no_models(tmp_path):
    write_model(tmp_path, "m")
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / ".git").mkdir()

    assert Repository(tmp_path).names() == ["m"]


def test_a_repository_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere"):
        Repository(tmp_path / "nowhere").check()


def test_a_whole_model_is_read(tmp_path):
    write_model(tmp_path, "m", toml='precision = "fp16"\nmax_batch_cost = 8\n')

    stored = Repository(tmp_path).read("m", 1)

    assert stored.config.precision is Precision.FP16
    assert stored.config.max_batch_cost == 8
    assert stored.model.weights["scores.weight"].shape == (5, 16)


def _edit_graph(folder: Path, change) -> None:
    document = json.loads((folder / "model.json").read_text())
    change(document)
    (folder / "model.json").write_text(json.dumps(document))


def _edit_weights(folder: Path, change) -> None:
    weights = {name: weight.clone() for name, weight in load_file(folder / "model.safetensors").items()}
    change(weights)
    save_file(weights, folder / "model.safetensors")


def _cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _replace_by_link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


BROKEN = {
    "no graph": (lambda f: (f / "model.json").unlink(), "model.json is missing"),
    "graph is a folder": (lambda f: _replace_by_folder(f / "model.json"), "model.json is missing"),
    "graph is a pipe": (lambda f: _replace_by_pipe(f / "model.json"), "model.json is missing"),
    "graph is cut off": (lambda f: _cut(f / "model.json", 50), "not JSON"),
    "graph is binary": (lambda f: (f / "model.json").write_bytes(b"\xff\xfe\x00"), "not JSON"),
    "graph is a list": (lambda f: (f / "model.json").write_text("[]"), "graph"),
    "graph is very deep": (lambda f: (f / "model.json").write_text("[" * 200_000), "not JSON"),
    "cycle": (lambda f: _edit_graph(f, lambda d: d["nodes"][0].update(inputs=["scores"])), "cycles cannot"),
    "unknown op": (lambda f: _edit_graph(f, lambda d: d["nodes"][0].update(op="magic")), "mix"),
    "wrong channels": (lambda f: _edit_graph(f, lambda d: d["inputs"]["x"].update(shape=[13])), "mix"),
    "unknown output": (lambda f: _edit_graph(f, lambda d: d["outputs"].update(ghost={})), "ghost"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "weights cut off": (lambda f: _cut(f / "model.safetensors", 100), "model.safetensors"),
    "empty weights": (lambda f: _cut(f / "model.safetensors", 0), "model.safetensors"),
    "weight missing": (lambda f: _edit_weights(f, lambda w: w.pop("scores.bias")), "scores.bias"),
    "weight left over": (lambda f: _edit_weights(f, lambda w: w.update(ghost=torch.ones(1))), "ghost"),
    "weight of another shape": (lambda f: _edit_weights(f, lambda w: w.update({"scores.bias": torch.ones(6)})), "6"),
    "weight is not finite": (
        lambda f: _edit_weights(f, lambda w: w["scores.bias"].fill_(float("nan"))),
        "finite",
    ),
    "settings are not TOML": (lambda f: (f / "serving.toml").write_text("max_batch_cost = "), "serving.toml"),
    "settings are not text": (lambda f: (f / "serving.toml").write_bytes(b"\xff\xfe"), "serving.toml"),
    "unknown setting": (lambda f: (f / "serving.toml").write_text("color = 1"), "color"),
    "setting of another type": (lambda f: (f / "serving.toml").write_text('max_batch_cost = "many"'), "max_batch_cost"),
    "setting below its limit": (lambda f: (f / "serving.toml").write_text("max_batch_cost = 0"), "max_batch_cost"),
    "delay is not a number": (lambda f: (f / "serving.toml").write_text("max_delay_ms = nan"), "max_delay_ms"),
    "settings do not fit": (lambda f: (f / "serving.toml").write_text("queue_limit_cost = 3"), "queue_limit_cost"),
    "settings are huge": (lambda f: (f / "serving.toml").write_text("#" * 70_000), "at most"),
    "settings are a folder": (lambda f: (f / "serving.toml").mkdir(), "serving.toml"),
    "graph leads out": (lambda f: _replace_by_link(f / "model.json", "/etc/hostname"), "out of the repository"),
    "weights lead out": (lambda f: _replace_by_link(f / "model.safetensors", "../../../w"), "out of the repository"),
    "graph leads in circles": (lambda f: _replace_by_link(f / "model.json", "model.json"), "nowhere|missing"),
    "version is gone": (lambda f: f.rename(f.parent / "2"), "model.json is missing"),
}


@pytest.mark.parametrize(("damage", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_folder_is_refused_with_the_reason(tmp_path, damage, reason):
    repository = tmp_path / "models"
    (tmp_path / "w").write_bytes(b"secret")
    damage(write_model(repository, "m"))

    with pytest.raises(BrokenModel, match=reason) as refusal:
        Repository(repository).read("m", 1)

    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("place", ["m", "m/1"])
def test_folders_that_lead_out_are_refused(tmp_path, place):
    outside = write_model(tmp_path / "outside", "m")
    link = tmp_path / "models" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(outside.parent if place == "m" else outside)

    with pytest.raises(BrokenModel, match="out of the repository"):
        Repository(tmp_path / "models").read("m", 1)


def test_links_inside_the_repository_are_followed(tmp_path):
    folder = write_model(tmp_path, "m")
    (tmp_path / "m" / "2").symlink_to(folder)

    assert Repository(tmp_path).versions("m") == [1, 2]
    assert Repository(tmp_path).read("m", 2).model.graph == Repository(tmp_path).read("m", 1).model.graph


def test_links_that_lead_nowhere_are_not_overlooked(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")

    assert Repository(tmp_path).names() == ["gone"]
    with pytest.raises(BrokenModel):
        Repository(tmp_path).versions("gone")


@pytest.mark.parametrize("name", ["bad name", "-x", "ü", "a" * 129, "new\nline"])
def test_unsafe_names_are_listed_and_refused(tmp_path, name):
    write_model(tmp_path, name)

    assert Repository(tmp_path).names() == [name]
    with pytest.raises(BrokenModel, match="name"):
        Repository(tmp_path).versions(name)


def test_a_model_without_versions_is_refused(tmp_path):
    (tmp_path / "m").mkdir()

    with pytest.raises(BrokenModel, match="no version"):
        Repository(tmp_path).versions("m")


@given(st.one_of(st.text(), st.sampled_from(["..", ".", "", "../models", "m/../m", "/etc", "m\0", "m/1", "~", "M"])))
def test_only_names_of_folders_in_it_are_held(tmp_path_factory, name):
    root = tmp_path_factory.getbasetemp() / "held" / "models"
    (root / "m").mkdir(parents=True, exist_ok=True)

    assert Repository(root).holds(name) == (name == "m")


def test_weights_in_memory_do_not_change_with_their_file(tmp_path):
    folder = write_model(tmp_path, "m")
    stored = Repository(tmp_path).read("m", 1)
    before = {name: weight.clone() for name, weight in stored.model.weights.items()}

    with (folder / "model.safetensors").open("r+b") as file:
        file.write(b"\xff" * (folder / "model.safetensors").stat().st_size)

    assert all(torch.equal(stored.model.weights[name], weight) for name, weight in before.items())


def test_limits_follow_from_the_kind_of_input_and_from_each_other():
    of_rows, of_clouds = parse_config("", parse_graph(ROWS)), parse_config("", parse_graph(CLOUDS))
    small = parse_config("max_batch_cost = 4", parse_graph(CLOUDS))

    assert (of_rows.max_batch_cost, of_rows.first_plan_cost, of_rows.queue_limit_cost) == (256, 256, 4096)
    assert (of_clouds.max_batch_cost, of_clouds.first_plan_cost) == (2**20, 2**17)
    assert (small.first_plan_cost, small.queue_limit_cost) == (4, 64)
