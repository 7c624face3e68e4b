"""The command convert: what it writes, what it says, and what it refuses."""

import re
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from lacuna_kernels import Value, load_model, walk
from lacuna_kernels.convert import SOURCES
from lacuna_kernels.convert.network import ACTIVATIONS
from lacuna_service.cli import app
from tests.cases import assert_close, tolerance
from tests.service import networks

README = (Path(__file__).parents[2] / "service" / "README.md").read_text()


def lacuna(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def outputs(folder: Path, x: Tensor) -> Tensor:
    model = load_model(folder)
    (y,) = walk(model.graph, model.weights, {next(iter(model.graph.inputs)): Value(x)}).values()
    return y.data


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    torch.save(network().state_dict(), path)
    return path


def rows(text: str) -> dict[str, list[str]]:
    """The lines of the table of layers, by layer, as cells."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if len(cells) > 2}


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_dense_checkpoint_becomes_a_model_that_check_accepts(tmp_path: Path, suffix: str) -> None:
    net, x, path, to = network(), torch.randn(20, 16), tmp_path / f"net.{suffix}", tmp_path / "models" / "net" / "1"
    (torch.save if suffix == "pt" else save_file)(net.state_dict(), path)
    save_file({"x": x}, tmp_path / "in.safetensors")
    save_file({"linear4": net(x).detach()}, tmp_path / "out.safetensors")

    # of full rank, so that nothing is missed; that has no fewer parameters, so the layers stay as they are
    done = lacuna("convert", "dense", path, "--to", to, "--activation", "relu", "--rank", 99)

    assert done.exit_code == 0, done.output
    assert all("no fewer than dense" in cells[-1] for cells in list(rows(done.stdout).values())[1:-1])
    files = ("--inputs", tmp_path / "in.safetensors", "--expected", tmp_path / "out.safetensors")
    checked = lacuna("check", to.parent, *files, "--device", "cpu")
    assert checked.exit_code == 0, checked.output


def test_the_table_says_error_and_parameters_of_each_layer(dense: Path, tmp_path: Path) -> None:
    done = lacuna("convert", "dense", dense, "--to", tmp_path / "net" / "1", "--tolerance", 0.8, "--rank", 2)

    assert done.exit_code == 0, done.output
    table, model = rows(done.stdout), load_model(tmp_path / "net" / "1")
    assert list(table) == ["layer", "linear0", "linear2", "linear4", "total"]
    assert table["linear2"][:2] == ["32 x 32", "4,16,8,1 1,8,8,8"] or table["linear2"][0] == "32 x 32"
    kept = [name for name, cells in table.items() if cells[-1].startswith("kept dense")]
    assert {node.name for node in model.graph.nodes if node.op == "linear"} == set(kept)
    parameters = sum(w.numel() for name, w in model.weights.items() if not name.endswith("bias"))
    assert table["total"][-1] == f"{parameters:,}"
    assert f"{sum(w.numel() for w in model.weights.values()):,} parameters" in done.stdout


def test_a_model_folder_is_converted_in_place_with_its_options(tmp_path: Path) -> None:
    source = networks.save(networks.tiny_kronecker(), tmp_path / "tiny" / "1")
    (source / "serving.toml").write_text("max_delay_ms = 1\n")

    done = lacuna("convert", "dense", source.parent, "--to", tmp_path / "tiny" / "2")

    assert done.exit_code == 0, done.output
    assert (tmp_path / "tiny" / "2" / "serving.toml").read_text() == "max_delay_ms = 1\n"
    before, after = load_model(source).graph, load_model(tmp_path / "tiny" / "2").graph
    assert [node.op for node in before.nodes] == ["kronecker_linear", "linear", "argmax", "softmax"]
    assert [node.op for node in after.nodes] == ["kronecker_linear", "kronecker_linear", "argmax", "softmax"]
    assert after.outputs == before.outputs


def test_trained_factors_become_a_model(tmp_path: Path) -> None:
    first, second, bias = torch.randn(4, 4, 4, 1), torch.randn(1, 4, 4, 4), torch.randn(16)
    torch.save({"a.factors.0": first, "a.factors.1": second, "a.bias": bias, "b.blkdiag1": torch.ones(4, 4, 4),
                "b.blkdiag2": torch.ones(4, 3, 4)}, tmp_path / "net.pt")  # fmt: skip
    x = torch.randn(5, 16)

    done = lacuna("convert", "kronecker", tmp_path / "net.pt", "--to", tmp_path / "net" / "1", "--activation", "gelu")

    assert done.exit_code == 0, done.output
    assert "a  kronecker_linear  row [n, 16] fp32  4,4,4,1 1,4,4,4  gelu" in done.stdout
    y = torch.einsum("abcd,nacd->nabd", first, x.reshape(5, 4, 4, 1)).reshape(5, 1, 4, 4)
    y = nn.functional.gelu(torch.einsum("abcd,nacd->nabd", second, y).reshape(5, 16) + bias)
    assert_close(
        outputs(tmp_path / "net" / "1", x), y.sum(1, keepdim=True).expand(5, 12), tolerance(terms=64, layers=3)
    )


def test_what_a_state_dict_does_not_say_is_told_by_layer(tmp_path: Path) -> None:
    state = {
        "a.factors.0": torch.randn(12, 5, 2),  # as algo="bmm" keeps (4, 5, 2, 3)
        "b.twiddle": torch.randn(1, 1, 6, 32, 2, 2),
        "c.weight": torch.randn(4, 5, 16),
        "c.bias": torch.randn(18),
    }
    torch.save(state, tmp_path / "net.pt")
    told = ("--patterns", "a=4,5,2,3", "--out-features", "b=61", "--decreasing-stride", "b", "--merge", 8)
    told = (*told, "--source", "monarch", "--in-features", 24, "--layers", "a relu b c", "--shuffle", "c")

    done = lacuna("convert", "kronecker", tmp_path / "net.pt", "--to", tmp_path / "net" / "1", *told)

    assert done.exit_code == 0, done.output
    assert "a  kronecker_linear  row [n, 60] fp32  4,5,2,3  relu" in done.stdout
    assert "b  kronecker_linear  row [n, 64] fp32  1,8,8,8 8,8,8,1" in done.stdout
    assert outputs(tmp_path / "net" / "1", torch.ones(2, 24)).shape == (2, 18)
    (shuffled,) = [line for line in done.stdout.splitlines() if "b_selected  select_features" in line]
    assert "row [n, 64]" in shuffled  # cut to 61, padded to 64, shuffled


@pytest.mark.parametrize("to", ["net", "net/0", "net/latest", "net/1.5", "net/²", "my net/1", ".net/1", "-/1"])
def test_a_folder_that_is_no_version_is_refused(dense: Path, tmp_path: Path, to: str) -> None:
    done = lacuna("convert", "dense", dense, "--to", tmp_path / to)

    assert done.exit_code == 2 and "NAME/VERSION" in done.output
    assert list(tmp_path.iterdir()) == [dense]


def test_a_version_that_exists_is_not_touched(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "net" / "1").mkdir(parents=True)

    done = lacuna("convert", "dense", dense, "--to", tmp_path / "net" / "1")

    assert done.exit_code == 2 and "exists" in done.output
    assert not list((tmp_path / "net" / "1").iterdir())


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("dense", ["--chain", "monarck"], "no chain"),
        ("dense", ["--layers", "0 relu 9"], "'9' is no layer"),
        ("kronecker", ["--patterns", "1,2"], "no chain"),
        ("kronecker", ["--patterns", "0=1,2,3,4 9=1,2,3,4"], "'9' is no layer"),
        ("kronecker", ["--out-features", "0=x"], "LAYER=N"),
        ("kronecker", ["--decreasing-stride", "fc"], "'fc' is no layer"),
        ("dense", ["--only", "fc"], "'fc' is no linear layer"),
        ("kronecker", ["--activation", "gleu"], "gleu"),
    ],
)
def test_what_cannot_be_converted_is_told_with_status_2(
    dense: Path, tmp_path: Path, command: str, options: list[str], words: str
) -> None:
    done = lacuna("convert", command, dense, "--to", tmp_path / "net" / "1", *options)

    assert done.exit_code == 2 and words in done.output
    assert not (tmp_path / "net").exists()


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "net.pt")

    done = lacuna("convert", "dense", tmp_path / "net.pt", "--to", tmp_path / "net" / "1")

    assert done.exit_code == 2 and "code of a pickle is never run" in done.output


def test_a_model_folder_takes_no_layers(tmp_path: Path) -> None:
    source = networks.save(networks.tiny_kronecker(), tmp_path / "tiny" / "1")

    done = lacuna("convert", "dense", source, "--to", tmp_path / "tiny" / "2", "--activation", "relu")

    assert done.exit_code == 2 and "are for checkpoints" in done.output


def test_what_is_not_there_is_told_with_what_is_taken(tmp_path: Path) -> None:
    told = {"dense": "a model folder (NAME, NAME/VERSION) or a checkpoint", "kronecker": "a checkpoint is .safetensors"}
    for command, words in told.items():
        done = lacuna("convert", command, tmp_path / "none", "--to", tmp_path / "net" / "1")

        assert done.exit_code == 2 and words in " ".join(done.output.split())


@pytest.mark.parametrize(
    "patterns", [["a=4,5,2,3 b=4,4,2,1 1,4,4,4"], ["a=4,5,2,3", "b=4,4,2,1 1,4,4,4"], ["b=4,4,2,1  1,4,4,4\ta=4,5,2,3"]]
)
def test_patterns_of_several_layers_are_told_one_by_one_or_together(tmp_path: Path, patterns: list[str]) -> None:
    state = {
        "a.factors.0": torch.randn(12, 5, 2),
        "b.factors.0": torch.randn(4, 4, 2),
        "b.factors.1": torch.randn(4, 4, 4),
    }
    torch.save(state, tmp_path / "net.pt")
    told = [part for text in patterns for part in ("--patterns", text)]

    done = lacuna("convert", "kronecker", tmp_path / "net.pt", "--to", tmp_path / "net" / "1", "--layers", "b", *told)

    assert done.exit_code == 0, done.output
    assert "b  kronecker_linear  row [n, 16] fp32  4,4,2,1 1,4,4,4" in done.stdout


@pytest.mark.parametrize("command", ["dense", "kronecker"])
def test_linear_layers_without_an_activation_are_warned_of(dense: Path, tmp_path: Path, command: str) -> None:
    for number, options in enumerate(([], ["--layers", "0 2 softmax"]), start=1):
        done = lacuna("convert", command, dense, "--to", tmp_path / "net" / str(number), *options)

        assert done.exit_code == 0 and f"no activation stands between the {4 - number} linear layers" in done.stderr

    for number, options in enumerate((["--activation", "relu"], ["--layers", "0 relu 2"], ["--layers", "0"]), start=3):
        done = lacuna("convert", command, dense, "--to", tmp_path / "net" / str(number), *options)

        assert done.exit_code == 0 and "WARNING" not in done.stderr


def test_a_network_that_stays_dense_is_told(dense: Path, tmp_path: Path) -> None:
    for number, rank in enumerate((1, 99), start=1):
        done = lacuna("convert", "dense", dense, "--to", tmp_path / "net" / str(number), "--rank", rank)

        assert done.exit_code == 0 and ("NO LAYER WAS FACTORISED" in done.stderr) == (rank == 99)


def test_a_folder_that_cannot_be_written_to_is_told(dense: Path) -> None:
    done = lacuna("convert", "dense", dense, "--to", dense / "1")

    assert done.exit_code == 2 and "net.pt is no folder" in done.output


def test_a_version_is_written_whole_or_not_at_all(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "1").symlink_to(tmp_path / "nowhere")

    failed = lacuna("convert", "dense", dense, "--to", tmp_path / "net" / "1")
    done = lacuna("convert", "dense", dense, "--to", tmp_path / "net" / "2")

    assert (failed.exit_code, done.exit_code) == (2, 0) and "cannot convert: " in failed.output
    assert {path.name for path in (tmp_path / "net").iterdir()} == {"1", "2"}
    assert {path.name for path in (tmp_path / "net" / "2").iterdir()} == {"model.json", "model.safetensors"}


def test_names_and_types_of_inputs_and_outputs_are_told(dense: Path, tmp_path: Path) -> None:
    for command in ("dense", "kronecker"):
        done = lacuna("convert", command, dense, "--to", tmp_path / command / "1")

        assert "input   x FP32 [-1, 16]\noutput  linear4 FP32 [-1, 4]\n" in done.stdout


def test_an_order_that_the_file_did_not_keep_is_told(tmp_path: Path) -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    save_file({"up.weight": first.weight, "down.weight": second.weight}, tmp_path / "net.safetensors")
    x = torch.randn(3, 4)

    by_name = lacuna("convert", "dense", tmp_path / "net.safetensors", "--to", tmp_path / "net" / "1", "--rank", 9)
    told = ("--layers", "up down", "--rank", 9)
    as_told = lacuna("convert", "dense", tmp_path / "net.safetensors", "--to", tmp_path / "net" / "2", *told)

    assert "by name: down up (--layers tells another)" in by_name.stderr
    assert as_told.exit_code == 0 and "by name" not in as_told.stderr
    assert_close(outputs(tmp_path / "net" / "1", x), first(second(x)).detach(), tolerance(terms=4, layers=2))
    assert_close(outputs(tmp_path / "net" / "2", x), second(first(x)).detach(), tolerance(terms=4, layers=2))


def test_the_choices_are_all_that_there_are() -> None:
    text = " ".join(lacuna("convert", "kronecker", "--help").output.split())

    assert f"--activation <{'|'.join(ACTIVATIONS)}>" in text
    assert f"--source <{'|'.join(SOURCES)}>" in text


def test_the_lines_of_the_readme_run_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a.factors.0": torch.ones(4, 4, 4, 1), "b.factors.0": torch.ones(1, 4, 4, 4)}, "factors.pt")
    net, x = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8)), torch.randn(5, 256)
    torch.save(net.state_dict(), "trained.pt")
    save_file({"x": x}, "in.safetensors")
    save_file({"linear2": net(x).detach()}, "out.safetensors")
    section = README.split("\n## Weights you have\n")[1].split("\n## ")[0]
    lines = [line.split("#")[0].split()[1:] for line in section.splitlines() if line.startswith("    lacuna ")]

    for words in lines[:-2]:
        done = lacuna(*words)
        assert done.exit_code == 0, done.output

    check, serve = lines[-2:]
    assert (check[0], serve) == ("check", ["serve", "--repository", "models"])
    assert "FAIL  linear2: max abs error" in lacuna(*check).output  # as factorised weights miss
    assert lacuna("check", "models/DENSE", *check[2:]).exit_code == 0


def test_the_readme_names_options_that_there_are() -> None:
    section = README.split("\n## Weights you have\n")[1].split("\n## ")[0]
    section = re.sub(r"train_digits.py --dense|lacuna (check|serve) .*", "", section)
    known = set(
        re.findall(
            r"--[a-z][\w-]*", "".join(lacuna("convert", name, "--help").output for name in ("kronecker", "dense"))
        )
    )

    assert len(named := set(re.findall(r"--[a-z][\w-]*", section))) > 8
    assert named <= known
