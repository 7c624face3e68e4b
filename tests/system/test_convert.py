"""A user's way: a trained checkpoint becomes a model folder, is compared, served and asked, each in its own process."""

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import httpx
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lacuna_kernels.convert.chains import balanced, matrix_of
from tests.system.running import serving

ROWS, WIDTHS = 200, (48, 120, 60, 7)


def lacuna(*arguments: object) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "lacuna_service", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def network(noise: float) -> nn.Sequential:
    """An MLP whose hidden weights are near chains, as they are after training with a penalty on what is beside them."""
    generator = torch.Generator().manual_seed(0)
    modules: list[nn.Module] = []
    for width_in, width_out in pairwise(WIDTHS):
        factors = [torch.randn(p.values, generator=generator) / p.c**0.5 for p in balanced(width_out, width_in)]
        linear = nn.Linear(width_in, width_out)
        beside = torch.randn(width_out, width_in, generator=generator) * width_in**-0.5
        linear.weight.data = matrix_of(factors) + noise * beside
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def ask(url: str, name: str, x: Tensor) -> Tensor:
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.flatten().tolist()}
    answer = httpx.post(f"{url}/v2/models/{name}/infer", json={"inputs": [tensor]}, timeout=60)
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    return torch.tensor(output["data"]).reshape(output["shape"])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_a_dense_checkpoint_is_converted_checked_served_and_asked(tmp_path: Path) -> None:
    net, x = network(noise=0.03), torch.randn(ROWS, WIDTHS[0])
    with torch.inference_mode():
        expected = net(x)
    torch.save({"state_dict": net.state_dict(), "epoch": 9}, tmp_path / "trained.pt")
    save_file({"x": x}, tmp_path / "in.safetensors")
    save_file({"linear4": expected}, tmp_path / "out.safetensors")

    to = tmp_path / "models" / "mlp" / "1"
    done = lacuna("convert", "dense", tmp_path / "trained.pt", "--to", to, "--activation", "relu", "--tolerance", 0.1)
    assert done.returncode == 0, done.stderr
    errors = [float(error) for error in re.findall(r"\d\.\d{3}e[-+]\d\d", done.stdout)]
    assert len(errors) == 3 and max(errors) < 0.1

    bound = sum(errors)  # relu does not enlarge what is missed, and rows drawn at random meet the error of the norm
    files = ("--inputs", tmp_path / "in.safetensors", "--expected", tmp_path / "out.safetensors")
    checked = lacuna("check", to.parent, *files, "--device", "cpu", "--tolerance", bound, "--agreement", 0.8)
    assert checked.returncode == 0, checked.stdout

    with serving(tmp_path / "models") as server:
        found = ask(server.url, "mlp", x)
    assert 0.1 * bound < relative(found, expected) < bound
    told = float(re.findall(r"relative L2 (\d\.\d+e[-+]\d\d),", checked.stdout)[0])
    assert abs(relative(found, expected) - told) < 1e-2 * told


def test_trained_factors_are_served_as_they_are(tmp_path: Path) -> None:
    first, second, bias = torch.randn(4, 6, 5, 1) / 5**0.5, torch.randn(4, 9, 6) / 6**0.5, torch.randn(34)
    state = {
        "fc1.factors.0": first,
        "fc2.blkdiag1": torch.randn(4, 6, 6) / 6**0.5,
        "fc2.blkdiag2": second,
        "fc2.bias": bias,
    }
    save_file(state, tmp_path / "trained.safetensors")
    x = torch.randn(ROWS, 20)

    to = tmp_path / "models" / "sparse" / "3"
    done = lacuna("convert", "kronecker", tmp_path / "trained.safetensors", "--to", to, "--activation", "tanh")
    assert done.returncode == 0, done.stderr

    with serving(tmp_path / "models") as server:
        found = ask(server.url, "sparse", x)
    y = torch.tanh(x @ torch.block_diag(*first[..., 0]).T) @ torch.block_diag(*state["fc2.blkdiag1"]).T
    y = y.reshape(ROWS, 6, 4).transpose(1, 2).flatten(1) @ torch.block_diag(*second).T
    y = y.reshape(ROWS, 4, 9).transpose(1, 2).flatten(1)[:, :34] + bias
    assert relative(found, y) < 1e-6
