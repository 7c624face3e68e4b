"""The demo models over HTTP on a GPU: the CPU's answers, and every millijoule of the counter accounted for."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pynvml
import pytest
import torch
from deploy.training import train_digits

from lacuna_client import Client
from lacuna_client.simulate import simulate_scan
from lacuna_kernels import Precision, Value, gpu_count, load_model, walk
from tests.cases import assert_close, assert_labels_follow, tolerance
from tests.system.running import Running, serving

pytestmark = pytest.mark.gpu
MODELS = Path(__file__).parents[2] / "deploy" / "models"
LAYERS = 40  # of lidar-minkunet, one after the other


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    if not gpu_count():
        pytest.skip("no CUDA device, or no pycuda")
    with serving(MODELS, "--device", "cuda") as running:
        yield running


def test_digits_over_http_are_those_of_the_cpu(server: Running) -> None:
    _, held_out = train_digits.split()
    model = load_model(MODELS / "digits-kronecker" / "1")
    pixels = held_out.pixels[:256]
    expected = walk(model.graph, model.weights, {"pixels": Value(pixels)})

    with Client(server.url) as client:
        answer = client.infer("digits-kronecker", {"pixels": pixels.numpy()})

    probabilities = torch.from_numpy(answer["probabilities"].copy())
    assert_close(probabilities, expected["probabilities"].data, tolerance(Precision.FP32, terms=64, layers=4))
    digits = torch.from_numpy(answer["digit"].copy())
    assert_labels_follow(digits, expected["probabilities"].data, tolerance(Precision.FP32, terms=64, layers=4))


@pytest.mark.parametrize("seed", [0, 1])
def test_lidar_labels_over_http_follow_the_scores_of_the_cpu(server: Running, seed: int) -> None:
    points = simulate_scan(seed).points
    model = load_model(MODELS / "lidar-minkunet" / "1")
    cloud = Value(torch.from_numpy(points), torch.tensor([0, len(points)]))
    with torch.inference_mode():
        expected = walk(model.graph, model.weights, {"points": cloud})

    with Client(server.url) as client:
        labels = torch.from_numpy(client.infer("lidar-minkunet", {"POINTS": points})["labels"].copy())
        from_file = client.pointcloud("lidar-minkunet", points.tobytes(), format="bin", accept="npy")

    assert_labels_follow(labels, expected["scores"].data, tolerance(Precision.FP16, terms=1728, layers=LAYERS))
    assert float((labels == expected["labels"].data).float().mean()) > 0.99
    assert np.array_equal(from_file, labels.numpy())


def test_the_same_cloud_gets_the_same_labels_alone_and_in_a_crowd(server: Running) -> None:
    clouds = [simulate_scan(seed).points for seed in range(4)]
    offsets = np.cumsum([0, *map(len, clouds)]).astype(np.int32)

    with Client(server.url) as client:
        joined = client.infer("lidar-minkunet", {"POINTS": np.concatenate(clouds), "OFFSETS": offsets})["labels"]
        alone = [client.infer("lidar-minkunet", {"POINTS": cloud})["labels"] for cloud in clouds]

    assert np.array_equal(joined, np.concatenate(alone))


def joules(url: str) -> tuple[dict[str, float], float]:
    """Energy by model, and by the device's counter, as /metrics tells."""
    text = httpx.get(f"{url}/metrics").text
    models = dict(re.findall(r'^lacuna_energy_joules_total\{model="([^"]+)"\} (\S+)$', text, re.MULTILINE))
    device = re.findall(r'^lacuna_device_energy_joules_total\{device="0"\} (\S+)$', text, re.MULTILINE)
    return {name: float(value) for name, value in models.items()}, sum(map(float, device))


def test_models_and_idle_add_up_to_the_energy_counter(server: Running) -> None:
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    time.sleep(1.5)
    before, counter_before = joules(server.url)[1], pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)

    points, until = simulate_scan(7).points, time.monotonic() + 4
    with Client(server.url) as client:
        while time.monotonic() < until:
            answer = client.infer("lidar-minkunet", {"POINTS": points}, energy=True)
    counter_after = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    time.sleep(1.5)  # what is exported lags a second behind
    models, device = joules(server.url)

    assert sum(models.values()) == pytest.approx(device, abs=1e-6)
    assert models["lidar-minkunet"] > 0
    assert models["idle"] > 0
    assert answer.parameters["energy_joules"] > 0
    # The exported counter's window is up to 2.5 s longer than ours, at no more than 700 W.
    assert (counter_after - counter_before) / 1000 <= device - before + 100
    assert device - before <= (counter_after - counter_before) / 1000 + 2.5 * 700
