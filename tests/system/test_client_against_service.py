"""The client and its command against the real service, in a process of its own, with small random networks."""

import json
import os
import queue
import subprocess
import sys
import threading

import numpy as np
import pytest
from typer.testing import CliRunner

import lacuna_client as lc
from lacuna_client.cli import app
from lacuna_client.simulate import CLASSES, Lidar, simulate_scan
from lacuna_kernels import Model, random_weights, save_model
from lacuna_kernels.zoo import kronecker_mlp, minkunet

START_S, STOP_S = 120, 30


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    cloud = minkunet(CLASSES, (4,) * 9, (1,) * 8, voxel_size_m=0.5)
    rows = kronecker_mlp([[(1, 8, 8, 8), (8, 8, 8, 1)]], 10, names=("pixels", "labels", "scores"))
    for name, graph in (("cloud", cloud), ("rows", rows)):
        save_model(Model(graph, random_weights(graph, 0)), folder / name / "1")
    return folder


@pytest.fixture(scope="module")
def url(repository):
    command = [sys.executable, "-m", "lacuna_service", "serve", "--port", "0", "--repository", str(repository)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [*command, "--model-control", "explicit", "--device", "cpu"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    found: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=follow, args=(process.stdout, found))
    reader.start()
    try:
        address = found.get(timeout=START_S)
        assert address.startswith("http"), f"the server did not start: {address}"
        yield address
    finally:
        process.terminate()
        status = process.wait(STOP_S)
        reader.join()
    assert status == 0


def follow(log, found):
    """Read a server's log to its end; pass on the address once it listens and is ready, or else the whole log."""
    lines, address, ready = [], None, False
    for line in log:
        lines.append(line)
        entry = json.loads(line) if line.startswith("{") else {}
        address, ready = entry.get("url", address), ready or entry.get("message") == "ready"
        if address and ready:
            found.put(address)
    found.put("".join(lines))


@pytest.fixture
def client(url):
    with lc.Client(url, timeout_s=60) as made:
        yield made


@pytest.fixture(scope="module")
def scan():
    return simulate_scan(2, Lidar(columns=400))


def test_server_and_models_tell_of_themselves(client):
    assert client.is_live() and client.is_ready() and client.is_ready("cloud") and not client.is_ready("nobody")
    assert "binary_tensor_data" in client.server_metadata()["extensions"]
    assert client.model_metadata("rows")["name"] == client.model_config("rows")["name"] == "rows"
    assert {row["name"]: row["state"] for row in client.index()} == {"cloud": "READY", "rows": "READY"}


def test_binary_and_json_forms_give_the_same_answer(client):
    metadata = client.model_metadata("rows")
    inputs = {metadata["inputs"][0]["name"]: np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)}
    binary, plain = (client.infer("rows", inputs, binary=form) for form in (True, False))
    assert set(binary) == set(plain) == {output["name"] for output in metadata["outputs"]}
    for name in binary:
        assert binary[name].dtype == plain[name].dtype and binary[name].shape == plain[name].shape
        np.testing.assert_allclose(binary[name], plain[name], rtol=1e-5, atol=1e-6)
    (one,) = client.infer("rows", inputs, ["labels"], "1", request_id="q").items()
    assert one[0] == "labels" and (one[1] == binary["labels"]).all()


def test_files_arrays_and_tensors_of_a_cloud_get_the_same_labels(client, scan, tmp_path):
    path = tmp_path / "scan.bin"
    path.write_bytes(scan.points.tobytes())
    answer = client.pointcloud("cloud", path)
    (name,) = (entry["name"] for entry in client.model_metadata("cloud")["inputs"] if entry["name"] != "OFFSETS")
    assert answer.classes == CLASSES and sum(answer.counts.values()) == len(scan.points)
    for labels in (
        client.pointcloud("cloud", scan.points, accept="npy"),
        client.pointcloud("cloud", path, "1", accept="npy"),
        client.infer("cloud", {name: scan.points}, ["labels"])["labels"],
    ):
        assert (labels == answer.labels).all()
    ply = client.pointcloud("cloud", path, accept="ply")
    assert ply.startswith(b"ply\n") and f"element vertex {len(scan.points)}".encode() in ply


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (lc.NotFound, lambda client: client.infer("nobody", {"pixels": np.zeros((1, 64), np.float32)})),
        (lc.NotFound, lambda client: client.model_metadata("rows", "7")),
        (lc.BadRequest, lambda client: client.infer("rows", {"nothing": np.zeros((1, 64), np.float32)})),
        (lc.BadRequest, lambda client: client.infer("rows", {"pixels": np.zeros((1, 3), np.float32)})),
        (lc.BadRequest, lambda client: client.pointcloud("cloud", b"123")),
        (lc.NotFound, lambda client: client.load("nobody")),
    ],
)
def test_faults_raise_their_error_and_the_server_lives(client, kind, call):
    with pytest.raises(kind) as caught:
        call(client)
    assert str(caught.value) and "HTTP status" not in str(caught.value)
    assert client.is_ready()


def test_unloading_and_loading_a_model(client):
    client.unload("rows")
    assert not client.is_ready("rows")
    with pytest.raises((lc.NotFound, lc.Unavailable)):
        client.model_metadata("rows")
    client.load("rows")
    assert client.is_ready("rows")


def test_statistics_count_requests(client, scan):
    def counted():
        return client.statistics("cloud")["model_stats"][0]["inference_stats"]["success"]["count"]

    before = counted()
    client.pointcloud("cloud", scan.points)
    assert counted() == before + 1


def test_the_command_labels_many_files_and_names_the_broken(url, scan, tmp_path):
    files = [tmp_path / f"{index}.bin" for index in range(5)]
    for index, path in enumerate(files):
        path.write_bytes(scan.points[: 1000 * index].tobytes())
    files[3].write_bytes(b"odd")
    options = ("--url", url, "--out", str(tmp_path / "out"), "--to", "label")
    result = CliRunner().invoke(app, ["infer", "cloud", *map(str, files), *options])
    assert result.exit_code == 1 and str(files[3]) in result.stderr
    sizes = {path.stem: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert sizes == {"0": 0, "1": 4000, "2": 8000, "4": 16000}
    status = CliRunner().invoke(app, ["status", "--url", url])
    assert status.exit_code == 0 and "cloud" in status.stdout
