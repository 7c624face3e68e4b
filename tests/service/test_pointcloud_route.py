"""Files of points over HTTP, on a real engine."""

import io
import struct

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.service import networks
from tests.service.http_app import CLOUDS, ROWS, json_input, outputs


def test_cloud_file_is_answered_as_infer_answers_its_points(http: TestClient) -> None:
    points = networks.cloud(400)
    tensors = outputs(http.post(f"{CLOUDS}/infer", json={"inputs": [json_input("POINTS", points)]}))
    answer = http.post(f"{CLOUDS}/pointcloud", content=points.tobytes()).json()
    assert answer["labels"] == tensors["labels"].tolist()
    assert (answer["model_name"], answer["model_version"], answer["points"]) == ("tiny-minkunet", "1", 400)
    assert answer["classes"] == list(networks.CLASSES)
    assert answer["counts"] == {name: answer["labels"].count(number) for number, name in enumerate(networks.CLASSES)}


def test_cloud_file_is_answered_as_npy_or_coloured_ply_where_accepted(http: TestClient) -> None:
    points = networks.cloud(400)
    labels = http.post(f"{CLOUDS}/pointcloud", content=points.tobytes()).json()["labels"]
    npy = http.post(f"{CLOUDS}/pointcloud", content=points.tobytes(), headers={"Accept": "application/x-npy"})
    header = len(npy.content) - 4 * len(labels)
    assert np.frombuffer(npy.content[header:], np.int32).tolist() == labels
    accept = {"Accept": "application/x-ply"}
    ply = http.post(f"{CLOUDS}/versions/1/pointcloud", content=points.tobytes(), headers=accept)
    start = ply.content.index(b"end_header\n") + len(b"end_header\n")
    for index, record in enumerate(struct.iter_unpack("<fffBBBi", ply.content[start:])):
        assert record[:3] == tuple(points[index, :3].tolist()) and record[6] == labels[index]
        assert record[3:6] == networks.COLOURS[labels[index]]


def test_format_of_a_file_is_the_query_or_the_content_type(http: TestClient) -> None:
    points = networks.cloud(30)
    expected = http.post(f"{CLOUDS}/pointcloud", content=points.tobytes()).json()["labels"]
    five = np.concatenate([points, points[:, :1]], 1)
    five[:, 3] *= 255  # five columns are nuScenes', whose intensity goes to 255
    buffer = io.BytesIO()
    np.save(buffer, points)
    npy = buffer.getvalue()
    for path, content, kind in (
        ("?format=npy", npy, "application/octet-stream"),
        ("", npy, "application/x-npy"),
        ("?columns=5", five.tobytes(), "application/octet-stream"),
    ):
        response = http.post(f"{CLOUDS}/pointcloud{path}", content=content, headers={"Content-Type": kind})
        assert response.status_code == 200, response.text
        assert response.json()["labels"] == expected


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        (f"{CLOUDS}/pointcloud", bytes(17), {}, 400),
        (f"{CLOUDS}/pointcloud?columns=2", bytes(16), {}, 400),
        (f"{CLOUDS}/pointcloud?columns=x", bytes(16), {}, 400),
        (f"{CLOUDS}/pointcloud?columns=99999999999999999999", bytes(16), {}, 400),
        (f"{CLOUDS}/pointcloud?format=xyz", bytes(16), {}, 415),
        (f"{CLOUDS}/pointcloud", bytes(16), {"Content-Type": "text/html"}, 415),
        (f"{CLOUDS}/pointcloud", bytes(16), {"Content-Encoding": "br"}, 415),
        (f"{CLOUDS}/pointcloud", bytes(16), {"Content-Encoding": "gzip"}, 400),
        (f"{CLOUDS}/pointcloud", bytes(16), {"Accept": "image/png"}, 406),
        (f"{CLOUDS}/pointcloud", b"ply\nformat ascii 1.0\n", {}, 400),
        (f"{CLOUDS}/pointcloud?format=ply", b"ply\nformat ascii 1.0\n", {}, 400),
        (f"{ROWS}/pointcloud", bytes(16), {}, 400),
        ("/v2/models/tiny-encoder/pointcloud", bytes(12), {}, 400),
        ("/v2/models/nobody/pointcloud", bytes(16), {}, 404),
    ],
)
def test_bad_cloud_file_is_refused(
    http: TestClient, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    response = http.post(path, content=body, headers=headers)
    assert response.status_code == status and list(response.json()) == ["error"], response.text


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("text/html, application/*;q=0.5", "application/json"),
        ("application/json;q=0.1, application/x-npy", "application/x-npy"),
        ("model/ply", "application/x-ply"),
        ("application/x-npy;q=0, application/x-ply;q=x, application/json", "application/json"),
    ],
)
def test_accept_chooses_the_form_of_the_answer(http: TestClient, accept: str | None, kind: str) -> None:
    headers = {"Accept": accept} if accept else {}
    response = http.post(f"{CLOUDS}/pointcloud", content=networks.cloud(3).tobytes(), headers=headers)
    assert response.status_code == 200 and response.headers["content-type"] == kind
