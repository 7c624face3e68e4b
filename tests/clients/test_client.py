"""The client against a real HTTP server."""

import json
import socket

import httpx
import numpy as np
import pytest

import lacuna_client as lc
from lacuna_client import Client


@pytest.fixture
def client(server):
    with Client(server.url, api_key="k", timeout_s=10) as made:
        yield made


def test_tensors_go_and_come_back_in_binary(client, server):
    inputs = {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float16), "y": np.array([1, 2], np.int64)}
    result = client.infer("echo", inputs, request_id="q")
    assert server.last.path == "/v2/models/echo/infer" and "inference-header-content-length" in server.last.headers
    assert list(result) == ["x", "y"] and (result["x"] == inputs["x"]).all() and (result["y"] == inputs["y"]).all()
    assert (result.model_name, result.model_version, result.id) == ("echo", "1", "q")


def test_json_form_needs_no_header_length(client, server):
    result = client.infer("echo", {"x": np.array([[1.5]], np.float32)}, binary=False)
    assert "inference-header-content-length" not in server.last.headers
    assert result["x"].tolist() == [[1.5]] and result["x"].dtype == np.float32


def test_named_outputs_version_deadline_and_energy_are_asked_for(client, server):
    arrays = {"x": np.zeros(1, np.float32), "y": np.ones(1, np.float32)}
    result = client.infer("echo", arrays, ["y"], "3", deadline_s=0.25, energy=True, parameters={"priority": 1})
    assert server.last.path == "/v2/models/echo/versions/3/infer"
    assert list(result) == ["y"] and result["y"].tolist() == [1]
    assert result.parameters["asked"] == {"priority": 1, "timeout": 250000, "binary_data_output": True}
    assert result.parameters["energy"] == ["1"]


def test_key_is_sent_as_bearer_and_names_are_escaped(client, server):
    with pytest.raises(lc.NotFound):
        client.model_metadata("a/../b c")
    assert server.last.headers["authorization"] == "Bearer k"
    assert server.last.path == "/v2/models/a%2F..%2Fb%20c"


def test_management_calls_use_the_protocols_addresses(client, server):
    assert client.server_metadata()["name"] == "echo"
    assert client.model_metadata("echo")["versions"] == ["1"]
    assert client.statistics("echo", "1") == {"model_stats": []}
    assert client.index()[0]["state"] == "READY"
    client.load("echo")
    client.unload("echo")
    assert (server.last.method, server.last.path) == ("POST", "/v2/repository/models/echo/unload")


def test_health_is_told_without_raising(client, server):
    assert client.is_live() and client.is_ready() and client.is_ready("echo")
    assert not client.is_ready("nobody")
    server.planned = [(503, {}, b"{}")]
    assert not client.is_ready()


@pytest.mark.parametrize("source", ["path", "text", "bytes"])
def test_cloud_files_are_labelled(client, server, tmp_path, source):
    points = np.array([[0, 1, 1, 1], [2, 1, 1, 1], [2, 0, 0, 0]], "<f4")
    path = tmp_path / "a.bin"
    path.write_bytes(points.tobytes())
    answer = client.pointcloud("echo", {"path": path, "text": str(path), "bytes": points.tobytes()}[source])
    assert server.last.query == {"format": ["bin"]} and server.last.body == points.tobytes()
    assert answer.labels.tolist() == [0, 2, 2] and answer.counts == {"zero": 1, "one": 0, "two": 2}


def test_cloud_answers_come_as_npy_and_ply(client):
    body = np.ones((2, 5), "<f4").tobytes()
    assert client.pointcloud("echo", body, accept="npy", columns=5).tolist() == [1, 1]
    assert client.pointcloud("echo", body, accept="ply", columns=5) == b"ply\nof 2"


def test_version_and_energy_of_a_cloud_are_asked_for(client, server):
    client.pointcloud("echo", np.ones((2, 4), "<f4").tobytes(), "3", energy=True)
    assert server.last.path == "/v2/models/echo/versions/3/pointcloud"
    assert server.last.query == {"format": ["bin"], "energy": ["1"]}


def test_arrays_are_sent_as_npy(client, server):
    points = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    with pytest.raises(lc.BadRequest, match="not rows of 4 floats"):
        client.pointcloud("echo", points)
    (tmp := server.last.body).startswith(b"\x93NUMPY")
    assert server.last.query == {"format": ["npy"]} and tmp.endswith(points.tobytes())


def test_unknown_suffix_is_refused_before_anything_is_sent(client, server, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x")
    with pytest.raises(ValueError, match="format 'txt' is not known"):
        client.pointcloud("echo", tmp_path / "a.txt")
    assert server.seen == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, lc.BadRequest),
        (401, lc.Unauthorized),
        (404, lc.NotFound),
        (405, lc.BadRequest),
        (413, lc.TooLarge),
        (415, lc.UnsupportedMedia),
        (500, lc.ServerError),
        (502, lc.ServerError),
        (503, lc.Unavailable),
        (504, lc.DeadlineExceeded),
        (204, lc.ProtocolError),
        (302, lc.ProtocolError),
    ],
)
def test_each_status_raises_its_error_with_the_servers_text(client, server, status, kind):
    text = "HTTP status 204" if status == 204 else "queue of 'm' is full: 64 of 64 rows"
    body = b"" if status == 204 else json.dumps({"error": text}).encode()
    server.planned = [(status, {"Retry-After": "1.5"}, body)]
    with pytest.raises(lc.LacunaError, match=text) as caught:
        client.server_metadata()
    assert type(caught.value) is kind
    assert caught.value.status == status and caught.value.retry_after_s == 1.5


@pytest.mark.parametrize("body", [b"<html>bad gateway", b"\xff\xfe", b"[1]", b'{"error": 5}', b""])
def test_errors_of_other_servers_still_say_something(client, server, body):
    server.planned = [(502, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, body)]
    with pytest.raises(lc.ServerError, match="HTTP status 502") as caught:
        client.server_metadata()
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b'{"outputs": []}'])
def test_a_success_that_is_no_answer_is_a_protocol_error(client, server, body):
    server.planned = [(200, {}, body)]
    with pytest.raises(lc.ProtocolError):
        client.infer("echo", {"x": np.zeros(1)})


@pytest.mark.parametrize("body", [b"", b"PK\3\4", b"\x93NUMPY\1\0", b"\x80\4N."])
def test_labels_that_are_no_npy_are_a_protocol_error(client, server, body):
    server.planned = [(200, {}, body)]
    with pytest.raises(lc.ProtocolError, match="npy"):
        client.pointcloud("echo", bytes(16), accept="npy")


def test_labels_that_no_integer_holds_are_a_protocol_error(client, server):
    server.planned = [(200, {}, b'{"model_name": "m", "points": 1, "classes": [], "labels": [99999999999999999999]}')]
    with pytest.raises(lc.ProtocolError):
        client.pointcloud("echo", bytes(16))


def test_nobody_listening_is_a_failed_connection():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening: nobody else gets the port, and nobody answers
        with Client(f"127.0.0.1:{held.getsockname()[1]}") as client:
            assert not client.is_live()
            with pytest.raises(lc.ConnectionFailed, match="cannot reach"):
                client.server_metadata()


def test_silence_is_a_timeout():
    with socket.create_server(("127.0.0.1", 0)) as quiet, pytest.raises(lc.TimedOut):
        Client(f"127.0.0.1:{quiet.getsockname()[1]}").infer("m", {"x": np.zeros(1)}, timeout_s=0.2)


def test_transport_can_be_injected():
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"name": str(request.url)}))
    with Client("http://elsewhere:1", transport=transport) as client:
        assert client.server_metadata() == {"name": "http://elsewhere:1/v2"}
