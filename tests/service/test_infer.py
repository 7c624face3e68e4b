"""Inference over HTTP, on a real engine."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from lacuna_kernels import load_model, walk
from lacuna_service.signature import Signature
from tests.cases import assert_close, tolerance
from tests.service import networks
from tests.service.http_app import CLOUDS, LENGTH, ROWS, binary_request, json_input, outputs, rows_record

GRAPHS = "/v2/models/tiny-rgcn"


def direct(folder: Path, **inputs: NDArray[Any]) -> dict[str, torch.Tensor]:
    """What the model means, computed without the service."""
    model = load_model(folder)
    signature = Signature(model.graph)
    batch = signature.values({name: networks.tensor(array) for name, array in inputs.items()})
    return signature.tensors(walk(model.graph, model.weights, batch))


def check(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in found.items():
        assert_close(tensor, expected[name], tolerance(terms=64, layers=20))


@pytest.mark.parametrize("version", [1, 2])
def test_rows_in_json_and_binary_are_answered_as_computed_directly(
    http: TestClient, repository: Path, version: int
) -> None:
    x = networks.rows(5)
    expected = direct(repository / "tiny-kronecker" / str(version), x=x)
    plain = http.post(f"{ROWS}/versions/{version}/infer", json={"inputs": [json_input("x", x)], "id": "a1"})
    body, headers = binary_request({"x": ("FP32", x)}, parameters={"binary_data_output": True})
    binary = http.post(f"{ROWS}/versions/{version}/infer", content=body, headers=headers)
    check(outputs(plain), expected)
    check(outputs(binary), expected)
    assert plain.json()["id"] == "a1" and plain.json()["model_version"] == str(version)
    assert LENGTH not in plain.headers and plain.headers["content-type"] == "application/json"
    assert binary.headers["content-type"] == "application/octet-stream"


def test_newest_version_answers_by_default(http: TestClient) -> None:
    answer = http.post(f"{ROWS}/infer", json={"inputs": [json_input("x", networks.rows(1))]}).json()
    assert answer["model_version"] == "2"


def test_only_the_outputs_asked_for_come_each_in_its_form(http: TestClient, repository: Path) -> None:
    x = networks.rows(3)
    asked = [{"name": "probabilities", "parameters": {"binary_data": True}}, {"name": "label"}]
    response = http.post(f"{ROWS}/infer", json={"inputs": [json_input("x", x)], "outputs": asked})
    assert list(outputs(response)) == ["probabilities", "label"]
    check(outputs(response), direct(repository / "tiny-kronecker" / "2", x=x))
    one = http.post(f"{ROWS}/infer", json={"inputs": [json_input("x", x)], "outputs": asked[1:]})
    assert list(outputs(one)) == ["label"]


def test_clouds_of_one_request_are_answered_as_each_alone(http: TestClient, repository: Path) -> None:
    points, offsets = networks.cloud(300), np.array([0, 200, 200, 201, 300], np.int32)
    body, headers = binary_request({"POINTS": ("FP32", points), "OFFSETS": ("INT32", offsets)})
    together = outputs(http.post(f"{CLOUDS}/infer", content=body, headers=headers))
    for start, stop in ((0, 200), (200, 201), (201, 300)):
        alone = direct(repository / "tiny-minkunet" / "1", POINTS=points[start:stop])
        check({name: tensor[start:stop] for name, tensor in together.items()}, alone)


def graphs(nodes: list[int], edges: list[int]) -> dict[str, tuple[str, NDArray[Any]]]:
    """Some graphs as tensors of a request."""
    each = [networks.edges(count, among, seed) for seed, (count, among) in enumerate(zip(edges, nodes, strict=True))]
    return {
        "POINTS": ("FP32", networks.cloud(sum(nodes), columns=5)),
        "OFFSETS": ("INT32", np.cumsum([0, *nodes]).astype(np.int32)),
        "EDGES": ("INT32", np.concatenate(each)),
        "EDGE_OFFSETS": ("INT32", np.cumsum([0, *edges]).astype(np.int32)),
    }


def test_graphs_of_one_request_are_answered_as_each_alone(http: TestClient, repository: Path) -> None:
    sent = graphs([40, 0, 9], [120, 0, 30])
    body, headers = binary_request(sent)
    together = outputs(http.post(f"{GRAPHS}/infer", content=body, headers=headers))
    assert together["label"].shape == (49,) and together["label"].dtype is torch.int32
    points, edges = sent["POINTS"][1], sent["EDGES"][1]
    for rows, own in ((slice(0, 40), slice(0, 120)), (slice(40, 49), slice(120, 150))):
        alone = direct(repository / "tiny-rgcn" / "1", POINTS=points[rows], EDGES=edges[own])
        check({name: tensor[rows] for name, tensor in together.items()}, alone)
        given = [json_input("POINTS", points[rows]), json_input("EDGES", edges[own], "INT32")]
        check(outputs(http.post(f"{GRAPHS}/infer", json={"inputs": given})), alone)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"EDGES": ("INT32", np.array([[0, 0, 0], [0, 9, 0]], np.int32))}, "edge 1: it leads from node 0 to node 9"),
        ({"EDGES": ("INT32", np.array([[0, 0, 3], [0, 0, 0]], np.int32))}, "its relation is 3, it must be 0 to 2"),
        ({"EDGES": ("INT32", np.zeros((2, 2), np.int32))}, "must be [-1, 3]"),
        ({"EDGES": ("FP32", np.zeros((2, 3), np.float32))}, "it must be INT32"),
        ({"EDGE_OFFSETS": ("INT32", np.array([0, 1], np.int32))}, "must rise from 0 to its 2 edges"),
        ({"EDGE_OFFSETS": ("INT32", np.array([0, 1, 2], np.int32))}, "equally many items"),
    ],
)
def test_edges_that_lead_nowhere_are_refused(
    http: TestClient, wrong: dict[str, tuple[str, NDArray[Any]]], words: str
) -> None:
    body, headers = binary_request(graphs([9], [2]) | wrong)
    response = http.post(f"{GRAPHS}/infer", content=body, headers=headers)
    assert response.status_code == 400 and words in response.json()["error"]


def test_a_network_on_graphs_takes_no_file_of_points(http: TestClient) -> None:
    response = http.post(f"{GRAPHS}/pointcloud", content=networks.cloud(4).tobytes())
    assert response.status_code == 400 and "does not label the points of one cloud" in response.json()["error"]


def test_sites_come_with_coordinates(http: TestClient, repository: Path) -> None:
    points = networks.cloud(50, columns=3)
    response = http.post("/v2/models/tiny-encoder/infer", json={"inputs": [json_input("POINTS", points)]})
    expected = direct(repository / "tiny-encoder" / "1", POINTS=points)
    assert set(outputs(response)) == {"features", "features_COORDINATES", "embedding"}
    check(outputs(response), expected)


def test_body_without_a_header_is_the_only_input(http: TestClient, repository: Path) -> None:
    x = networks.rows(4)
    response = http.post(f"{ROWS}/infer", content=x.tobytes(), headers={LENGTH: "0"})
    assert LENGTH in response.headers
    check(outputs(response), direct(repository / "tiny-kronecker" / "2", x=x))


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_requests_and_answers(http: TestClient, repository: Path, encoding: str, pack: Any) -> None:
    x = networks.rows(200)
    body, headers = binary_request({"x": ("FP32", x)})
    headers |= {"Content-Encoding": encoding, "Accept-Encoding": encoding}
    response = http.post(f"{ROWS}/infer", content=pack(body), headers=headers)
    assert response.headers["content-encoding"] == encoding
    check(outputs(response), direct(repository / "tiny-kronecker" / "2", x=x))
    plain = http.post(f"{ROWS}/infer", content=body, headers={LENGTH: headers[LENGTH], "Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers


def test_no_rows_are_answered_with_no_rows_and_an_empty_cloud_with_no_labels(http: TestClient) -> None:
    rows = outputs(http.post(f"{ROWS}/infer", json={"inputs": [json_input("x", networks.rows(0))]}))
    labels = outputs(http.post(f"{CLOUDS}/infer", json={"inputs": [json_input("POINTS", networks.cloud(0))]}))
    assert rows["probabilities"].shape == (0, 4) and labels["labels"].shape == (0,)


@pytest.mark.parametrize(
    "points",
    [networks.cloud(1), np.full((500, 4), 0.01, np.float32), np.repeat(networks.cloud(3), 50, 0)],
    ids=["one point", "all in one voxel", "duplicates"],
)
def test_degenerate_clouds_are_clouds(http: TestClient, repository: Path, points: NDArray[np.float32]) -> None:
    response = http.post(f"{CLOUDS}/infer", json={"inputs": [json_input("POINTS", points)]})
    check(outputs(response), direct(repository / "tiny-minkunet" / "1", POINTS=points))


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "not JSON"),
    "empty": (b"", "not JSON"),
    "no object": ([], "object"),
    "no inputs": ({"inputs": []}, "inputs"),
    "wrong name": ({"inputs": [rows_record(name="y")]}, "'y' is not known"),
    "wrong type": ({"inputs": [rows_record(datatype="FP64")]}, "it must be FP32"),
    "no such type": ({"inputs": [rows_record(datatype="FP8")]}, "it must be FP32"),
    "wrong shape": ({"inputs": [rows_record(shape=[16, 1])]}, "must be [-1, 16]"),
    "too few numbers": ({"inputs": [rows_record(shape=[2, 16])]}, "takes 32 numbers"),
    "overflowing shape": ({"inputs": [rows_record(shape=[2**31, 1024])]}, "must be [-1, 16]"),
    "overflowing rows": ({"inputs": [rows_record(shape=[2**40, 16])]}, "takes"),
    "no such output": ({"inputs": [rows_record()], "outputs": [{"name": "z"}]}, "'z' is not known"),
    "reserved": ({"inputs": [rows_record()], "parameters": {"triton_x": 1}}, "reserved"),
}


@pytest.mark.parametrize(("document", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_bad_request_says_what_is_wrong(http: TestClient, document: Any, message: str) -> None:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    response = http.post(f"{ROWS}/infer", content=body)
    assert response.status_code == 400 and message in response.json()["error"]
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize("length", ["-1", "999999", "x", "1e2", "0.5"])
def test_bad_header_length_is_refused(http: TestClient, length: str) -> None:
    response = http.post(f"{ROWS}/infer", content=b'{"inputs": []}', headers={LENGTH: length})
    assert response.status_code == 400 and LENGTH in response.json()["error"]


def test_truncated_and_overlong_binary_bodies_are_refused(http: TestClient) -> None:
    body, headers = binary_request({"x": ("FP32", networks.rows(2))})
    for wrong in (body[:-1], body + b"x", body[: int(headers[LENGTH])]):
        response = http.post(f"{ROWS}/infer", content=wrong, headers=headers)
        assert response.status_code == 400 and "bytes" in response.json()["error"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e9])
def test_points_that_are_nowhere_are_refused(http: TestClient, bad: float) -> None:
    points = networks.cloud(10)
    points[3, 1] = bad
    body, headers = binary_request({"POINTS": ("FP32", points)})
    response = http.post(f"{CLOUDS}/infer", content=body, headers=headers)
    assert response.status_code == 400
    assert ("not finite" if abs(bad) != 1e9 else "voxels") in response.json()["error"]
    file = http.post(f"{CLOUDS}/pointcloud", content=points.tobytes())
    assert file.status_code == 400 and file.json()["error"] == response.json()["error"]


@pytest.mark.parametrize("offsets", [[0], [1, 10], [0, 9], [0, 11], [0, 7, 3, 10], [-1, 10], []])
def test_offsets_that_do_not_cover_the_points_are_refused(http: TestClient, offsets: list[int]) -> None:
    arrays = {"POINTS": ("FP32", networks.cloud(10)), "OFFSETS": ("INT32", np.array(offsets, np.int32))}
    body, headers = binary_request(arrays)
    response = http.post(f"{CLOUDS}/infer", content=body, headers=headers)
    assert response.status_code == 400 and "offsets" in response.json()["error"]


def test_request_above_the_largest_batch_is_refused_by_its_limit(http: TestClient) -> None:
    body, headers = binary_request({"x": ("FP32", networks.rows(257))})
    response = http.post(f"{ROWS}/infer", content=body, headers=headers)
    assert response.status_code == 413 and "256" in response.json()["error"]


def test_request_whose_time_is_over_is_refused(http: TestClient) -> None:
    points = networks.cloud(20_000)
    body, headers = binary_request({"POINTS": ("FP32", points)}, parameters={"timeout": 1})
    response = http.post(f"{CLOUDS}/infer", content=body, headers=headers)
    assert response.status_code == 504 and "deadline" in response.json()["error"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/nobody/infer", 404),
        ("/v2/models/nobody/versions/1/infer", 404),
        (f"{ROWS}/versions/3/infer", 404),
        (f"{ROWS}/versions/x/infer", 404),
        (f"{ROWS}/versions/-1/infer", 404),
        ("/v2/models/..%2f..%2fetc/infer", 404),
        ("/v2/models/%00/infer", 404),
        (f"/v2/models/{'x' * 5000}/infer", 404),
        (f"{ROWS}/infer/", 404),
    ],
)
def test_unknown_models_and_versions_are_not_found(http: TestClient, path: str, status: int) -> None:
    response = http.post(path, json={"inputs": [rows_record()]})
    assert response.status_code == status and list(response.json()) == ["error"]
    assert len(response.text) < 1000


def test_energy_is_told_only_where_there_is_a_meter(http: TestClient) -> None:
    answer = http.post(f"{ROWS}/infer?energy=1", json={"inputs": [rows_record()]}).json()
    assert "parameters" not in answer
    assert "lacuna_energy_joules_total{" not in http.get("/metrics").text
