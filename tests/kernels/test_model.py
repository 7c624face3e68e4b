"""Model folders: what is written is read again, and what is broken is refused with the reason."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lacuna_kernels import GraphError, Model, WeightError, load_model, parse_graph, random_weights, save_model
from tests.kernels.networks import document, node


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    nodes = [
        node("hidden", "linear", "x", out_features=3, activation="relu"),
        node("y", "linear", "hidden", out_features=2),
    ]
    graph = parse_graph(document({"x": {"axis": "row", "shape": [4]}}, nodes, "y"))
    save_model(Model(graph, random_weights(graph, seed=1)), tmp_path / "model")
    return tmp_path / "model"


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del weights[key]
        else:
            weights[key] = value
    save_file(weights, folder / "model.safetensors")


def test_model_survives_being_written_and_read(folder: Path) -> None:
    model = load_model(folder)

    assert set(model.weights) == {"hidden.weight", "hidden.bias", "y.weight", "y.bias"}
    assert torch.equal(model.weights["y.weight"], random_weights(model.graph, seed=1)["y.weight"])


def test_half_precision_weights_are_read_as_fp32(folder: Path) -> None:
    change_weights(folder, y__weight=torch.ones(2, 3, dtype=torch.float16))

    assert load_model(folder).weights["y.weight"].dtype is torch.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y__bias": None}, r"weight 'y.bias' \[2\] is missing"),
        ({"z__bias": torch.ones(2)}, "weight 'z.bias' belongs to no node"),
        ({"y__bias": torch.ones(3)}, r"has shape \[3\], the graph needs \[2\]"),
        ({"y__bias": torch.ones(2, dtype=torch.int32)}, "is torch.int32, it must be fp32, fp16, bf16 or fp64"),
        ({"y__bias": torch.ones(2).to(torch.float8_e5m2)}, "is torch.float8_e5m2, it must be fp32"),
        ({"y__bias": torch.tensor([1.0, float("nan")])}, "must be finite"),
    ],
)
def test_wrong_weights_are_refused_by_name(folder: Path, changes: dict[str, torch.Tensor | None], words: str) -> None:
    change_weights(folder, **changes)

    with pytest.raises(WeightError, match=words):
        load_model(folder)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, (2**60).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7 + b"{}"]
)
def test_a_file_that_is_no_safetensors_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)

    with pytest.raises(WeightError):
        load_model(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"null"])
def test_a_file_that_is_no_graph_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.json").write_bytes(content)

    with pytest.raises(GraphError):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()

    with pytest.raises((GraphError, WeightError), match=name):
        load_model(folder)
