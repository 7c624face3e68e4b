"""The commands check, info and version on real model folders."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file
from typer.testing import CliRunner

from lacuna_kernels import load_model, walk
from lacuna_service.cli import app
from lacuna_service.signature import Signature
from tests.service import networks

Tensors = dict[str, torch.Tensor]


def lacuna(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def outputs(folder: Path, inputs: Tensors) -> Tensors:
    model = load_model(folder)
    signature = Signature(model.graph)
    return signature.tensors(walk(model.graph, model.weights, signature.values(inputs)))


def check(tmp_path: Path, folder: Path, inputs: Tensors, expected: Tensors, *options: object) -> Result:
    save_file(inputs, tmp_path / "in.safetensors")
    save_file({name: value.contiguous() for name, value in expected.items()}, tmp_path / "out.safetensors")
    files = ("--inputs", tmp_path / "in.safetensors", "--expected", tmp_path / "out.safetensors")
    return lacuna("check", folder, *files, "--device", "cpu", *options)


@pytest.fixture
def rows_model(tmp_path: Path) -> Path:
    return networks.save(networks.tiny_kronecker(), tmp_path / "rows" / "1")


@pytest.fixture
def rows_input() -> Tensors:
    return {"x": networks.tensor(networks.rows(20))}


def test_a_model_agrees_with_itself(tmp_path: Path, rows_model: Path, rows_input: Tensors) -> None:
    for folder in (rows_model, rows_model.parent):
        result = check(tmp_path, folder, rows_input, outputs(rows_model, rows_input))
        assert result.exit_code == 0, result.output
        assert "pass  label: labels agree 100.0000%" in result.output
        assert "pass  probabilities: max abs error 0.000e+00, relative L2 0.000e+00" in result.output


def test_an_error_above_the_tolerance_fails(tmp_path: Path, rows_model: Path, rows_input: Tensors) -> None:
    expected = {"probabilities": outputs(rows_model, rows_input)["probabilities"] * 1.01}
    assert check(tmp_path, rows_model, rows_input, expected).exit_code == 1
    looser = check(tmp_path, rows_model, rows_input, expected, "--tolerance", "0.02")
    assert looser.exit_code == 0 and "relative L2 9.901e-03" in looser.output


def test_labels_that_differ_fail(tmp_path: Path, rows_model: Path, rows_input: Tensors) -> None:
    expected = {"label": outputs(rows_model, rows_input)["label"].clone()}
    expected["label"][0] += 1
    result = check(tmp_path, rows_model, rows_input, expected)
    assert result.exit_code == 1 and "FAIL  label: labels agree 95.0000%" in result.output
    assert check(tmp_path, rows_model, rows_input, expected, "--agreement", "0.95").exit_code == 0


def test_an_output_that_there_is_not_is_told_with_those_that_there_are(
    tmp_path: Path, rows_model: Path, rows_input: Tensors
) -> None:
    result = check(tmp_path, rows_model, rows_input, {"nothing": torch.ones(1)})
    assert "FAIL  nothing: the model has no such output; it gives label, probabilities\n" in result.output


@pytest.mark.parametrize("expected", [{"nothing": torch.ones(1)}, {"label": torch.zeros(3)}, {}])
def test_what_cannot_be_compared_fails(
    expected: Tensors, tmp_path: Path, rows_model: Path, rows_input: Tensors
) -> None:
    assert check(tmp_path, rows_model, rows_input, expected).exit_code == 1


def test_sites_may_come_in_another_order(tmp_path: Path) -> None:
    folder = networks.save(networks.tiny_encoder(), tmp_path / "sites" / "1")
    inputs = {"POINTS": networks.tensor(networks.cloud(40, columns=3))}
    expected = outputs(folder, inputs)
    order = torch.randperm(len(expected["features"]), generator=torch.Generator().manual_seed(1))
    expected = {name: value[order] if name.startswith("features") else value for name, value in expected.items()}
    result = check(tmp_path, folder, inputs, expected)
    assert result.exit_code == 0, result.output
    expected["features"] = expected["features"].flip(0)
    assert check(tmp_path, folder, inputs, expected).exit_code == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"y": torch.ones(1, 16)}, "'y' is not known"),
        ({}, "'x' is missing"),
        ({"x": torch.ones(1, 15)}, "shape [1, 15]"),
        ({"x": torch.ones(1, 16, dtype=torch.float64)}, "float64"),
    ],
)
def test_inputs_that_do_not_fit_cannot_be_told(
    inputs: Tensors, message: str, tmp_path: Path, rows_model: Path, rows_input: Tensors
) -> None:
    result = check(tmp_path, rows_model, inputs, outputs(rows_model, rows_input))
    assert result.exit_code == 2 and message in result.output


def test_no_model_and_no_safetensors_cannot_be_told(tmp_path: Path, rows_model: Path) -> None:
    (tmp_path / "x").write_text("no tensors")
    assert lacuna("check", tmp_path, "--inputs", "x", "--expected", "x").exit_code == 2
    result = lacuna("check", rows_model, "--inputs", tmp_path / "x", "--expected", tmp_path / "x")
    assert result.exit_code == 2 and "no safetensors file" in result.output
    assert "safetensors.torch.save_file({name: tensor, ...}, 'x.safetensors') writes one" in result.output


def test_broken_serving_toml_cannot_be_told(tmp_path: Path, rows_model: Path, rows_input: Tensors) -> None:
    (rows_model / "serving.toml").write_text("precision = 'fp8'")
    result = check(tmp_path, rows_model, rows_input, {})
    assert result.exit_code == 2 and "precision" in result.output


def test_a_cpu_is_judged_as_fp32_whatever_serving_toml_asks_for(
    tmp_path: Path, rows_model: Path, rows_input: Tensors
) -> None:
    (rows_model / "serving.toml").write_text("precision = 'fp16'")
    result = check(tmp_path, rows_model, rows_input, outputs(rows_model, rows_input), "--device", "cpu")
    assert "a CPU computes in fp32, not in fp16\n" in result.output
    assert "in fp32: passes up to a relative L2 of 0.0001" in result.output


def test_info_tells_of_a_broken_serving_toml(rows_model: Path) -> None:
    (rows_model / "serving.toml").write_text("precison = 'fp16'")
    result = lacuna("info", rows_model)
    assert result.exit_code == 2 and "precison" in result.output


def test_info_shows_every_node_with_its_weights_and_cost(tmp_path: Path, rows_model: Path) -> None:
    text = lacuna("info", rows_model, "--rows", 10).output
    nodes = json.loads((rows_model / "model.json").read_text())["nodes"]
    assert all(f"{node['name']}  " in text for node in nodes)
    weights = sum(weight.numel() for weight in load_model(rows_model).weights.values())
    total = next(line for line in text.splitlines() if line.startswith("total"))
    assert f" {weights:,} " in total
    assert "input   x FP32 [-1, 16]" in text
    assert text.splitlines()[-1].startswith("memory  on an H200 in fp32: weights 0.")
    assert all(f"weight  {name} {list(w.shape)}" in text for name, w in load_model(rows_model).weights.items())


def test_info_tells_of_graphs_what_their_cost_is_for(tmp_path: Path) -> None:
    text = lacuna("info", networks.save(networks.tiny_rgcn(), tmp_path / "graphs" / "1"), "--rows", 10).output
    assert "input   EDGES INT32 [-1, 3]" in text
    assert "Cost of 10 nodes, if an edge of every relation leads to each." in text


def test_info_of_no_model_fails(tmp_path: Path) -> None:
    assert lacuna("info", tmp_path).exit_code == 2


def test_version_is_one() -> None:
    assert lacuna("version").output.strip().count(".") >= 1
