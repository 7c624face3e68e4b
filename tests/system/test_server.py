"""The process: starting, going down in good order, bad HTTP, clients that go away."""

import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.service import networks
from tests.system.running import Running, serving, started

INFER = "/v2/models/tiny-kronecker/infer"
POINTCLOUD = "/v2/models/tiny-minkunet/pointcloud"
LARGE = (networks.cloud(20_000) * 20).tobytes()


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def metric(server: Running, name: str) -> float:
    """The sum of a metric's series."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"lacuna_{name}{{"))


def raw(server: Running, data: bytes) -> bytes:
    """Send bytes as they are, and return all that comes back."""
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_what_is_under_way_and_exits_0(repository: Path, number: int) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(running.url + POINTCLOUD, content=LARGE, timeout=60))

    with serving(repository) as running:
        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        wait_until(lambda: metric(running, "request_bytes_total") == 3 * len(LARGE))
        status = running.stop(number)
        for client in clients:
            client.join()
        messages = [line["message"] for line in running.log()]
    assert status == 0
    assert [answer.status_code for answer in answers] == [200] * 3
    assert all(answer.json()["points"] == 20_000 for answer in answers)
    assert messages[-2:] == ["draining", "stopped"]


def test_a_signal_while_models_load_exits_0(repository: Path) -> None:
    with started(repository) as running:
        running.wait_for("listening")
        assert running.stop() == 0


def test_without_a_repository_the_server_says_so_and_exits_1(tmp_path: Path) -> None:
    with started(tmp_path / "nowhere") as running:
        assert running.process.wait(60) == 1
        messages = [line["message"] for line in running.log()]
    assert any("nowhere" in message for message in messages) and "listening" not in messages


def test_an_empty_repository_is_warned_of(tmp_path: Path) -> None:
    with serving(tmp_path) as running:
        assert [line for line in running.log() if line["level"] == "warning" and str(tmp_path) in line["message"]]


def test_a_taken_port_is_said_once_and_exits_1(server: Running, repository: Path) -> None:
    with started(repository, "--port", server.address.split(":")[1]) as running:
        assert running.process.wait(60) == 1
        (line,) = running.log()
    assert "Address already in use" in line["message"] and "--port" in line["message"]


def test_a_host_that_there_is_not_is_said_and_exits_1(repository: Path) -> None:
    with started(repository, "--host", "203.0.113.7") as running:
        assert running.process.wait(60) == 1
        (line,) = running.log()
    assert "cannot listen on 203.0.113.7 port 0" in line["message"] and "--port" not in line["message"]


def test_a_host_may_be_a_name(repository: Path) -> None:
    with serving(repository, "--host", "localhost") as running:
        assert httpx.get(f"{running.url}/v2/health/ready").status_code == 200


def test_a_wrong_setting_is_said_and_exits_2(repository: Path) -> None:
    with started(repository, LACUNA_DRAIN_S="soon") as running:
        assert running.process.wait(60) == 2
        assert "LACUNA_DRAIN_S" in running.log_file.read_text() or "--drain-s" in running.log_file.read_text()


@pytest.mark.parametrize(
    "data", [b"\0\1\2\r\n\r\n", b"GET /v2 HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"]
)
def test_what_is_no_http_is_an_error_object(server: Running, data: bytes) -> None:
    head, _, body = raw(server, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and list(json.loads(body)) == ["error"]


def test_the_connection_survives_a_body_that_is_refused_unread(server: Running) -> None:
    connection = http.client.HTTPConnection(server.address, timeout=30)
    for _ in range(2):
        connection.request("POST", "/v2/repository/index", bytes(2_000_000))
        response = connection.getresponse()
        assert response.status == 413 and "limit" in json.loads(response.read())["error"]
    connection.request("GET", "/v2")
    assert connection.getresponse().status == 200
    connection.close()


def test_work_whose_client_has_gone_is_dropped(tmp_path: Path) -> None:
    model = networks.save(networks.tiny_minkunet(), tmp_path / "tiny-minkunet" / "1")
    (model / "serving.toml").write_text("max_batch_cost = 20_000")  # one cloud at a time: the others wait for seconds
    with serving(tmp_path) as running:
        host, port = running.address.split(":")
        body = f"POST {POINTCLOUD} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(LARGE)}\r\n\r\n".encode() + LARGE
        connections = [socket.create_connection((host, int(port)), timeout=30) for _ in range(12)]
        for connection in connections:
            connection.sendall(body)
        wait_until(lambda: metric(running, "queue_depth") >= 1)
        for connection in connections:
            connection.close()
        wait_until(lambda: metric(running, "queue_depth") == 0)
        lines = httpx.get(f"{running.url}/metrics").text.splitlines()
        assert any('reason="cancelled"' in line for line in lines)


def test_a_client_that_goes_away_while_it_sends_harms_nobody(server: Running) -> None:
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            f"POST {POINTCLOUD} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n".encode() + bytes(99)
        )
    assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
    assert not [line for line in server.log() if line["level"] in ("error", "critical")]
