"""The command tune, but for the measuring, which takes a GPU: what it asks for, and what it says when it cannot."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import lacuna_kernels
from lacuna_kernels import (
    Batch,
    DeviceError,
    InputError,
    Model,
    Options,
    Precision,
    TunedGroup,
    Tuning,
    gpu_count,
    parse_graph,
)
from lacuna_service.cli import app
from lacuna_service.codecs.labelled import encode_ply
from lacuna_service.config import parse_config, plan_costs
from lacuna_service.power import energy_counter
from lacuna_service.tuning import MOST_BATCHES, summary
from tests.service import networks


def tune(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["tune", *map(str, arguments)])


@dataclass
class Tuner:
    """Stands for lacuna_kernels.tune: keeps what it is asked for, and pretends to measure three things."""

    asked: dict[str, Any] = field(default_factory=dict)
    samples: list[Batch] = field(default_factory=list)
    error: Exception | None = None

    def __call__(
        self,
        model: Model,
        options: Options,
        costs: list[int],
        objective: str,
        *,
        samples: list[Batch],
        index: int,
        meter: object,
        progress: Callable[[int, int, str], None],
        notice: Callable[[str], None],
    ) -> Tuning:
        self.asked = {"options": options, "costs": costs, "objective": objective, "index": index, "meter": meter}
        self.samples = samples
        if self.error:
            raise self.error
        notice("what lay there was no table")
        for done in range(4):
            progress(done, 3, f"layer {done}" if done < 3 else "")
        return Tuning(Path("cache/tuned/Some-GPU.json"), GROUPS if samples else ())


GROUPS = (
    TunedGroup(131072, "submanifold 27 x 96 -> 96 at stride 1", 3, 80e-6, 64e-6, "wgmma m=128 n=96"),
    TunedGroup(131072, "inverse 8 x 128 -> 96 at stride 1", 1, 20e-6, 20e-6, "mma m=128 n=32"),
    TunedGroup(262144, "submanifold 27 x 96 -> 96 at stride 1", 3, 160e-6, 128e-6, "wgmma m=256 n=128"),
)


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
        "options": Options(Precision.BF16, max_cost=100, initial_cost=100),
        "costs": [1, 2, 4, 8, 16, 32, 64, 100],
        "objective": "latency",
        "index": 0,
        "meter": energy_counter,
    }


def test_options_win_over_serving_toml(folder: Path, tuner: Tuner) -> None:
    (folder / "serving.toml").write_text("precision = 'bf16'")
    options = ("--rows", 3, "--rows", 500, "--objective", "energy", "--precision", "tf32", "--device", 2)
    assert tune(folder, *options).exit_code == 0
    assert tuner.asked["options"].precision is Precision.TF32
    assert (tuner.asked["costs"], tuner.asked["objective"], tuner.asked["index"]) == ([3, 500], "energy", 2)


def test_clouds_are_tuned_for_from_the_first_plan_on() -> None:
    graph = networks.tiny_minkunet()
    assert plan_costs(parse_config("", graph), graph) == [2**17, 2**18, 2**19, 2**20]
    assert plan_costs(parse_config("max_batch_cost = 5000", graph), graph) == [5000]


@pytest.mark.parametrize(
    "options",
    [
        *(("--rows", 0), ("--objective", "price"), ("--precision", "fp8"), ("--device", -1)),
        *(("--batch", 0), ("--columns", 2)),
    ],
    ids=str,
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


def test_a_model_of_other_layers_has_nothing_to_tune(tmp_path: Path) -> None:
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


@pytest.fixture
def convolutions(tmp_path: Path) -> Path:
    return networks.save(networks.tiny_minkunet(), tmp_path / "clouds" / "1")


def scan(path: Path, points: int, seed: int = 0, columns: int = 4) -> Path:
    """A .bin of a cloud for tiny_minkunet."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(networks.cloud(points, seed, columns).tobytes())
    return path


def points_of(batches: list[Batch]) -> list[list[int]]:
    """Points of the clouds of each batch."""
    return [batch["points"].offsets.diff().tolist() for batch in batches]


def test_samples_are_read_by_their_endings_one_a_batch(convolutions: Path, tmp_path: Path, tuner: Tuner) -> None:
    folder, cloud = tmp_path / "scans", networks.cloud(30)
    scan(folder / "a.bin", 20)
    np.save(folder / "b.npy", cloud)
    (folder / "c.PLY").write_bytes(encode_ply(cloud, np.zeros(30, np.uint8), np.zeros((1, 3), np.uint8)))
    (folder / "poses.txt").write_text("no cloud")
    (folder / "deeper.bin").mkdir()

    result = tune(convolutions, "--samples", folder)

    assert result.exit_code == 2 and "c.PLY: no column 'intensity'" in result.output
    (folder / "c.PLY").unlink()
    assert tune(convolutions, "--samples", folder).exit_code == 0
    assert points_of(tuner.samples) == [[20], [30]]
    assert torch.equal(tuner.samples[1]["points"].data, networks.tensor(cloud))


def test_several_samples_are_measured_at_a_time_and_the_last_batch_is_filled(
    convolutions: Path, tmp_path: Path, tuner: Tuner
) -> None:
    for points in (10, 11, 12):
        scan(tmp_path / "scans" / f"{points}.bin", points)

    result = tune(convolutions, "--samples", tmp_path / "scans", "--batch", 2)

    assert points_of(tuner.samples) == [[10, 11], [12, 10]]
    assert "samples, 2 at a time: 21, 22 points\n" in result.output
    assert tune(convolutions, "--samples", tmp_path / "scans" / "12.bin", "--batch", 3).exit_code == 0
    assert points_of(tuner.samples) == [[12, 12, 12]]


def test_of_many_samples_some_are_taken_at_even_distances(convolutions: Path, tmp_path: Path, tuner: Tuner) -> None:
    for number in range(2 * MOST_BATCHES):
        scan(tmp_path / "scans" / f"{number:02}.bin", number + 1)

    assert tune(convolutions, "--samples", tmp_path / "scans").exit_code == 0

    assert points_of(tuner.samples) == [[number + 1] for number in range(0, 2 * MOST_BATCHES, 2)]


def test_a_bin_may_have_other_columns_than_the_model(convolutions: Path, tmp_path: Path, tuner: Tuner) -> None:
    path = scan(tmp_path / "nuscenes.bin", 16, columns=5)

    assert tune(convolutions, "--samples", path, "--columns", 5).exit_code == 0

    assert points_of(tuner.samples) == [[16]]


def test_plans_are_tuned_as_they_are_served(convolutions: Path, tmp_path: Path, tuner: Tuner) -> None:
    (convolutions / "serving.toml").write_text("max_batch_cost = 300000\nfirst_plan_cost = 5000")

    assert tune(convolutions, "--samples", scan(tmp_path / "a.bin", 9)).exit_code == 0

    assert tuner.asked["options"] == Options(Precision.FP32, max_cost=300_000, initial_cost=5000)


def test_sparse_convolutions_ask_for_samples(convolutions: Path, tuner: Tuner) -> None:
    result = tune(convolutions)

    assert result.exit_code == 2 and not tuner.asked
    assert "sparse convolutions, which are measured on real clouds: --samples PATH is missing" in result.output
    model = lacuna_kernels.load_model(convolutions)
    with pytest.raises(InputError, match="samples are missing"):
        lacuna_kernels.backend.tune(model, Options(), [1])


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("gone.bin", None, "there is no"),
        ("a.txt", b"1 2 3", "should end in .bin, .pcd, .ply"),
        ("a.bin", b"12345", "a.bin: a .bin of 5 bytes is not a whole number of points"),
        ("a.npy", b"12345", "a.npy: NPY: the file must begin with"),
        ("a.bin", b"", "a.bin has no points"),
        ("a.bin", np.full((2, 4), np.nan, np.float32).tobytes(), "2 points that are not finite"),
        ("a.bin", np.zeros((101, 4), np.float32).tobytes(), "a.bin: the cloud has 101 points, the limit is 100"),
        ("a.bin", np.zeros((60, 4), np.float32).tobytes(), "are 120 points in one batch"),
    ],
    ids=["no file", "no cloud", "cut off", "damaged", "empty", "not finite", "too large", "too large together"],
)
def test_samples_that_cannot_be_taken_are_told_by_name(
    name: str, body: bytes | None, message: str, convolutions: Path, tmp_path: Path, tuner: Tuner
) -> None:
    (convolutions / "serving.toml").write_text("max_batch_cost = 100")
    if body is not None:
        (tmp_path / name).write_bytes(body)

    result = tune(convolutions, "--samples", tmp_path / name, "--batch", 2)

    assert result.exit_code == 2 and message in result.output and name in result.output
    assert not tuner.asked


def test_a_folder_without_clouds_is_told(convolutions: Path, tmp_path: Path, tuner: Tuner) -> None:
    (tmp_path / "scans").mkdir()

    result = tune(convolutions, "--samples", tmp_path / "scans")

    assert result.exit_code == 2 and "scans holds no point clouds: none of its files ends in .bin" in result.output


@pytest.mark.parametrize("options", [("--batch", 2), ("--columns", 4)], ids=str)
def test_what_is_about_samples_is_refused_without_any(folder: Path, tuner: Tuner, options: tuple[str, int]) -> None:
    result = tune(folder, *options)

    assert result.exit_code == 2
    assert "--batch and --columns are about samples, and there are none" in result.output


def test_samples_are_for_models_that_have_convolutions(folder: Path, tmp_path: Path, tuner: Tuner) -> None:
    result = tune(folder, "--samples", scan(tmp_path / "a.bin", 9))

    assert result.exit_code == 2 and "the model has none" in result.output


def test_what_tuning_is_worth_is_summed_up_for_plans_of_each_size(
    convolutions: Path, tmp_path: Path, tuner: Tuner
) -> None:
    result = tune(convolutions, "--samples", scan(tmp_path / "a.bin", 9))

    assert "\n".join(summary(GROUPS, "latency")) in result.output
    assert summary(GROUPS, "latency") == [
        "",
        "on plans for 131072 points:",
        "sparse convolutions                    layers      rule     tuned  rule / tuned  kernel",
        "submanifold 27 x 96 -> 96 at stride 1       3   80.0 us   64.0 us          1.25  wgmma m=128 n=96",
        "inverse 8 x 128 -> 96 at stride 1           1   20.0 us   20.0 us          1.00  mma m=128 n=32",
        "all                                         4  260.0 us  212.0 us          1.23",
        "the rule is at worst 1.25 times the best: submanifold 27 x 96 -> 96 at stride 1",
        "",
        "on plans for 262144 points:",
        "sparse convolutions                    layers      rule     tuned  rule / tuned  kernel",
        "submanifold 27 x 96 -> 96 at stride 1       3  160.0 us  128.0 us          1.25  wgmma m=256 n=128",
        "all                                         3  480.0 us  384.0 us          1.25",
        "the rule is at worst 1.25 times the best: submanifold 27 x 96 -> 96 at stride 1",
    ]


def test_energy_is_summed_up_in_joules() -> None:
    assert "inverse 8 x 128 -> 96 at stride 1           1  0.020 mJ  0.020 mJ          1.00  mma m=128 n=32" in summary(
        GROUPS, "energy"
    )
    assert summary((), "energy") == []
