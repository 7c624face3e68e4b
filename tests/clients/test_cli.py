"""The command line, run as typer runs it, against a real HTTP server."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from lacuna_client import Client
from lacuna_client.batch import Job
from lacuna_client.batch import run as label_all
from lacuna_client.cli import app
from lacuna_client.simulate import simulate_scan

FULL = (503, {"Retry-After": "0.01"}, json.dumps({"error": "full"}).encode())


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def clouds(tmp_path):
    paths = [tmp_path / f"{index}.bin" for index in range(6)]
    for index, path in enumerate(paths):
        path.write_bytes(np.full((index + 1, 4), index % 3, "<f4").tobytes())
    return paths


@pytest.mark.parametrize("kind", ["npy", "label", "ply"])
def test_infer_writes_one_answer_for_each_file(run, server, clouds, tmp_path, kind):
    out = tmp_path / "deep" / "labels"
    result = run("infer", "echo", *clouds, "--url", server.url, "--out", out, "--to", kind, "--parallel", 3)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == [f"{index}.{kind}" for index in range(6)]
    written = (out / f"4.{kind}").read_bytes()
    if kind == "ply":
        assert written == b"ply\nof 5"
    else:
        labels = np.frombuffer(written, "<u4") if kind == "label" else np.load(out / "4.npy")
        assert labels.tolist() == [1] * 5


def test_infer_goes_on_after_errors_and_names_the_failed(run, server, clouds, tmp_path):
    clouds[1].write_bytes(b"odd")
    clouds[3].unlink()
    result = run("infer", "echo", *clouds, "--url", server.url, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"{clouds[1]}: 3 bytes are not rows of 4 floats" in result.stderr
    assert f"{clouds[3]}: " in result.stderr and "No such file" in result.stderr
    assert "4 of 6 files labelled" in result.stdout
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == ["0", "2", "4", "5"]


def test_infer_waits_while_the_server_is_full(run, server, clouds, tmp_path):
    server.planned = [FULL, FULL]
    result = run("infer", "echo", clouds[0], "--url", server.url, "--out", tmp_path / "out")
    assert result.exit_code == 0 and len(server.seen) == 3


def test_infer_gives_up_on_a_server_that_stays_full(run, server, clouds, tmp_path):
    server.planned = [FULL] * 8
    result = run("infer", "echo", clouds[0], "--url", server.url, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "full" in result.stderr and len(server.seen) == 8


def test_infer_refuses_to_overwrite(run, server, clouds, tmp_path):
    twin = tmp_path / "other" / "0.bin"
    twin.parent.mkdir()
    twin.write_bytes(clouds[0].read_bytes())
    result = run("infer", "echo", clouds[0], twin, "--url", server.url, "--out", tmp_path / "out")
    assert result.exit_code == 2 and server.seen == []
    labels = tmp_path / "a.npy"
    np.save(labels, np.zeros((1, 4), np.float32))
    result = run("infer", "echo", labels, "--url", server.url, "--out", tmp_path)
    assert result.exit_code == 2 and server.seen == []


def test_infer_hands_on_format_and_columns(run, server, tmp_path):
    odd = tmp_path / "cloud.raw"
    odd.write_bytes(np.ones((2, 5), "<f4").tobytes())
    options = ("--format", "bin", "--columns", 5, "--url", server.url, "--out", tmp_path / "out")
    assert run("infer", "echo", odd, *options).exit_code == 0
    assert server.last.query == {"format": ["bin"], "columns": ["5"]}


@pytest.mark.parametrize("suffix", ["npy", "label"])
def test_sample_writes_the_scan_of_its_seed(run, tmp_path, suffix):
    out, labels = tmp_path / "scan.bin", tmp_path / f"scan.{suffix}"
    result = run("sample", out, "--seed", 5, "--labels", labels)
    assert result.exit_code == 0 and "road" in result.stdout
    scan = simulate_scan(5)
    assert (np.fromfile(out, "<f4").reshape(-1, 4) == scan.points).all()
    assert (np.load(labels) if suffix == "npy" else np.fromfile(labels, "<u4")).tolist() == scan.labels.tolist()


def test_sample_refuses_labels_of_unknown_form(run, tmp_path):
    result = run("sample", tmp_path / "a.bin", "--labels", tmp_path / "a.txt")
    assert result.exit_code == 2 and not (tmp_path / "a.bin").exists()


def test_status_shows_server_and_models(run, server):
    result = run("status", "--url", server.url)
    assert result.exit_code == 0
    assert "echo 9" in result.stdout and "READY" in result.stdout


def test_status_shows_reasons_with_brackets_as_they_are(run, server):
    entry = {"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "got [points], not [/points]"}
    server.planned = [(200, {}, b'{"name": "s", "version": "1"}'), (200, {}, json.dumps([entry]).encode())]
    assert "got [points], not [/points]" in run("status", "--url", server.url).stdout


def test_who_stops_early_waits_for_no_further_file(server, clouds, tmp_path):
    with Client(server.url) as client:
        done = label_all(client, Job("echo", tmp_path / "out", "npy"), clouds * 50, 1)
        next(done)
        done.close()
    assert len(server.seen) < 50


def test_status_of_a_server_that_is_not_ready_exits_with_1(run, server):
    server.planned = [(200, {}, b'{"name": "s", "version": "1"}'), (200, {}, b"[]"), (503, {}, b"{}")]
    result = run("status", "--url", server.url)
    assert result.exit_code == 1 and "not ready" in result.stdout


def test_status_of_nobody_says_so(run):
    result = run("status", "--url", "http://127.0.0.1:1")
    assert result.exit_code == 1 and "cannot reach" in result.stderr


def test_address_and_key_come_from_the_environment(run, server, monkeypatch):
    monkeypatch.setenv("LACUNA_URL", server.url)
    monkeypatch.setenv("LACUNA_API_KEY", "secret")
    assert run("status").exit_code == 0
    assert server.last.headers["authorization"] == "Bearer secret"
