"""The command tune, but for the measuring, which takes a GPU: what it asks for, and what it says when it cannot."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import lacuna_kernels
from lacuna_kernels import DeviceError, Model, Options, Precision, gpu_count, parse_graph
from lacuna_service.cli import app
from lacuna_service.config import parse_config, plan_costs
from lacuna_service.power import energy_counter
from tests.service import networks


def tune(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["tune", *map(str, arguments)])


@dataclass
class Tuner:
    """Stands for lacuna_kernels.tune: keeps what it is asked for, and pretends to measure three things."""

    asked: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None

    def __call__(
        self,
        model: Model,
        options: Options,
        costs: list[int],
        objective: str,
        *,
        index: int,
        meter: object,
        progress: Callable[[int, int, str], None],
        notice: Callable[[str], None],
    ) -> Path:
        self.asked = {"options": options, "costs": costs, "objective": objective, "index": index, "meter": meter}
        if self.error:
            raise self.error
        notice("what lay there was no table")
        for done in range(4):
            progress(done, 3, f"layer {done}" if done < 3 else "")
        return Path("cache/tuned/Some-GPU.json")


@pytest.fixture
def tuner(monkeypatch: pytest.MonkeyPatch) -> Tuner:
    found = Tuner()
    monkeypatch.setattr(lacuna_kernels, "tune", found)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return networks.save(networks.tiny_kronecker(), tmp_path / "rows" / "1")


def test_a_model_is_tuned_for_all_that_is_served(folder: Path, tuner: Tuner) -> None:
    (folder / "serving.toml").write_text("precision = 'bf16'\nmax_batch_cost = 100")
    result = tune(folder.parent)
    assert result.exit_code == 0, result.output
    assert f"{folder} in bf16, batches of 1, 2, 4, 8, 16, 32, 64, 100\n" in result.output
    assert all(f"layer {number}\n" in result.output for number in range(3))
    assert "what lay there was no table\n" in result.stderr
    assert "written to cache/tuned/Some-GPU.json" in result.output
    assert tuner.asked == {
        "options": Options(Precision.BF16),
        "costs": [1, 2, 4, 8, 16, 32, 64, 100],
        "objective": "latency",
        "index": 0,
        "meter": energy_counter,
    }


def test_options_win_over_serving_toml(folder: Path, tuner: Tuner) -> None:
    (folder / "serving.toml").write_text("precision = 'bf16'")
    options = ("--rows", 3, "--rows", 500, "--objective", "energy", "--precision", "tf32", "--device", 2)
    assert tune(folder, *options).exit_code == 0
    assert tuner.asked["options"] == Options(Precision.TF32)
    assert (tuner.asked["costs"], tuner.asked["objective"], tuner.asked["index"]) == ([3, 500], "energy", 2)


def test_clouds_are_tuned_for_from_the_first_plan_on() -> None:
    graph = networks.tiny_minkunet()
    assert plan_costs(parse_config("", graph), graph) == [2**17, 2**18, 2**19, 2**20]
    assert plan_costs(parse_config("max_batch_cost = 5000", graph), graph) == [5000]


@pytest.mark.parametrize(
    "options", [("--rows", 0), ("--objective", "price"), ("--precision", "fp8"), ("--device", -1)], ids=str
)
def test_options_that_make_no_sense_are_refused(options: tuple[object, ...], folder: Path, tuner: Tuner) -> None:
    result = tune(folder, *options)
    assert result.exit_code == 2 and str(options[0]) in result.output
    assert not tuner.asked


def test_what_goes_wrong_is_said(folder: Path, tuner: Tuner) -> None:
    tuner.error = DeviceError("the GPU fell off the bus")
    result = tune(folder)
    assert result.exit_code == 2 and "the GPU fell off the bus" in result.output


def test_no_model_and_a_broken_serving_toml_are_said(folder: Path, tmp_path: Path, tuner: Tuner) -> None:
    assert tune(tmp_path / "nothing").exit_code == 2
    (folder / "serving.toml").write_text("precison = 'fp16'")
    result = tune(folder)
    assert result.exit_code == 2 and "precison" in result.output


def test_without_a_gpu_it_says_so(folder: Path) -> None:
    if gpu_count():
        pytest.skip("there is a GPU")
    result = tune(folder)
    assert result.exit_code == 2 and "no CUDA device" in result.output


def test_a_model_without_linear_layers_has_nothing_to_tune(tmp_path: Path) -> None:
    document = {
        "format": 1,
        "inputs": {"x": {"axis": "row", "dtype": "fp32", "shape": [4]}},
        "nodes": [{"name": "y", "op": "relu", "inputs": ["x"]}],
        "outputs": {"y": {}},
    }
    result = tune(networks.save(parse_graph(document), tmp_path / "relu" / "1"))
    assert result.exit_code == 2 and "nothing to tune" in result.output


def test_energy_takes_a_meter(folder: Path) -> None:
    model = lacuna_kernels.load_model(folder)
    with pytest.raises(ValueError, match="meter"):
        lacuna_kernels.tune(model, Options(), [1], "energy")
