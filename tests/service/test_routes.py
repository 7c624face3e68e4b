"""Inference, metadata and the repository over HTTP, on a real engine."""

import gzip
import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from httpx import Response
from numpy.typing import NDArray

from lacuna_kernels import load_model, walk
from lacuna_service.signature import Signature
from tests.cases import assert_close, tolerance
from tests.service import networks
from tests.service.http_app import json_input, open_app

ROWS, CLOUDS = "/v2/models/tiny-kronecker", "/v2/models/tiny-minkunet"
GRAPHS = "/v2/models/tiny-rgcn"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = networks.fill_repository(tmp_path_factory.mktemp("repository"))
    networks.save(networks.tiny_encoder(), root / "tiny-encoder" / "1")
    networks.save(networks.tiny_rgcn(), root / "tiny-rgcn" / "1")
    return root


@pytest.fixture(scope="module")
def http(repository: Path) -> Iterator[TestClient]:
    with open_app(repository, model_control="explicit") as client:
        yield client


def direct(folder: Path, **inputs: NDArray[Any]) -> dict[str, torch.Tensor]:
    """What the model means, computed without the service."""
    model = load_model(folder)
    signature = Signature(model.graph)
    batch = signature.values({name: networks.tensor(array) for name, array in inputs.items()})
    return signature.tensors(walk(model.graph, model.weights, batch))


def binary_request(arrays: dict[str, tuple[str, NDArray[Any]]], **header: Any) -> tuple[bytes, dict[str, str]]:
    records = [
        {"name": name, "datatype": datatype, "shape": list(a.shape), "parameters": {"binary_data_size": a.nbytes}}
        for name, (datatype, a) in arrays.items()
    ]
    text = json.dumps({"inputs": records, **header}).encode()
    return text + b"".join(array.tobytes() for _, array in arrays.values()), {LENGTH: str(len(text))}


def outputs(response: Response) -> dict[str, torch.Tensor]:
    """The output tensors of an answer, JSON or binary."""
    assert response.status_code == 200, response.text
    end = int(response.headers.get(LENGTH, len(response.content)))
    found, rest = {}, response.content[end:]
    for record in json.loads(response.content[:end])["outputs"]:
        dtype = {"INT32": np.int32, "FP32": np.float32}[record["datatype"]]
        size = record.get("parameters", {}).get("binary_data_size")
        array = np.array(record["data"], dtype) if size is None else np.frombuffer(rest[:size], dtype).copy()
        rest = rest[size or 0 :]
        found[record["name"]] = torch.from_numpy(array.reshape(record["shape"]))
    assert not rest
    return found


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


def rows_record(**changes: Any) -> dict[str, Any]:
    return json_input("x", networks.rows(1)) | changes


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


def test_model_tells_its_tensors(http: TestClient) -> None:
    assert http.get(ROWS).json() == {
        "name": "tiny-kronecker",
        "versions": ["1", "2"],
        "platform": "lacuna",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}],
        "outputs": [
            {"name": "label", "datatype": "INT32", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 4]},
        ],
    }


@pytest.mark.parametrize("model", [ROWS, CLOUDS, "/v2/models/tiny-encoder"])
def test_config_names_what_the_metadata_names(http: TestClient, model: str) -> None:
    metadata, config = http.get(model).json(), http.get(f"{model}/config").json()
    batched = config["max_batch_size"] > 0
    for here, there in (("input", "inputs"), ("output", "outputs")):
        assert [entry["name"] for entry in config[here]] == [entry["name"] for entry in metadata[there]]
        for mine, theirs in zip(config[here], metadata[there], strict=True):
            assert mine["data_type"] == f"TYPE_{theirs['datatype']}"
            dims = mine.get("reshape", {"shape": mine["dims"]})["shape"]
            assert theirs["shape"] == ([-1, *dims] if batched else dims)
    assert batched == (model == ROWS)


def test_config_tells_the_names_of_columns_and_classes(http: TestClient) -> None:
    parameters = http.get(f"{CLOUDS}/config").json()["parameters"]
    assert json.loads(parameters["points.columns"]["string_value"]) == ["x", "y", "z", "intensity"]
    assert json.loads(parameters["labels.classes"]["string_value"]) == list(networks.CLASSES)


def test_statistics_count_requests_rows_and_batches(http: TestClient) -> None:
    def read() -> dict[str, Any]:
        (entry,) = http.get(f"{ROWS}/versions/1/stats").json()["model_stats"]
        return dict(entry)

    before = read()
    http.post(f"{ROWS}/versions/1/infer", json={"inputs": [json_input("x", networks.rows(3))]})
    http.post(f"{ROWS}/versions/1/infer", json={"inputs": [rows_record(name="y")]})
    after = read()
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] - before["execution_count"] == 1
    grown = {
        name: after["inference_stats"][name]["count"] - before["inference_stats"][name]["count"]
        for name in before["inference_stats"]
    }
    once = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    assert grown == dict.fromkeys(once, 1) | {"cache_hit": 0, "cache_miss": 0}
    everything = http.get("/v2/models/stats").json()["model_stats"]
    assert {entry["name"] for entry in everything} >= {"tiny-kronecker", "tiny-minkunet"}


def test_metrics_count_requests_by_outcome_and_bytes(http: TestClient) -> None:
    def value(name: str, **labels: str) -> float:
        wanted = [f'{key}="{text}"' for key, text in labels.items()]
        for line in http.get("/metrics").text.splitlines():
            if line.startswith(f"lacuna_{name}{{") and all(label in line for label in wanted):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def counts() -> list[float]:
        model = "tiny-kronecker"
        return [
            value("requests_total", model=model, outcome="ok"),
            value("requests_total", model=model, outcome="bad_request"),
            value("request_bytes_total", model=model),
            value("response_bytes_total", model=model),
            value("request_seconds_count", model=model),
            value("decode_seconds_count", model=model),
            value("encode_seconds_count", model=model),
        ]

    before, body = counts(), json.dumps({"inputs": [rows_record()]}).encode()
    answer = http.post(f"{ROWS}/infer", content=body, headers={"Accept-Encoding": "identity"})
    http.post(f"{ROWS}/infer", content=b"{")
    http.post("/v2/models/somebody/infer", content=b"{")
    grown = [after - earlier for after, earlier in zip(counts(), before, strict=True)]
    assert grown == [1, 1, len(body) + 1, len(answer.content), 2, 1, 1]
    assert "somebody" not in http.get("/metrics").text


def test_index_load_and_unload(http: TestClient, repository: Path) -> None:
    def states() -> dict[str, str]:
        entries = http.post("/v2/repository/index").json()
        return {entry["name"]: entry["state"] for entry in entries}

    networks.save(networks.tiny_kronecker(), repository / "late" / "1")
    assert states()["late"] == "UNAVAILABLE"
    assert http.get("/v2/models/late/ready").status_code == 503
    assert http.post("/v2/repository/models/late/load").status_code == 200
    assert states()["late"] == "READY" and http.get("/v2/models/late/ready").status_code == 200
    unload = http.post("/v2/repository/models/late/unload", json={"parameters": {"unload_dependents": True}})
    assert unload.status_code == 200 and states()["late"] == "UNAVAILABLE"
    refused = http.post("/v2/models/late/infer", json={"inputs": [rows_record()]})
    assert refused.status_code == 503 and "late" in refused.json()["error"]
    only_ready = http.post("/v2/repository/index", json={"ready": True}).json()
    assert only_ready and all(entry["state"] == "READY" for entry in only_ready)


def test_model_that_does_not_load_says_why_and_the_others_answer(http: TestClient, repository: Path) -> None:
    folder = networks.save(networks.tiny_kronecker(), repository / "broken" / "1")
    (folder / "model.safetensors").unlink()
    response = http.post("/v2/repository/models/broken/load")
    assert response.status_code == 400 and "model.safetensors" in response.json()["error"]
    (entry,) = [entry for entry in http.post("/v2/repository/index").json() if entry["name"] == "broken"]
    assert entry["state"] == "UNAVAILABLE" and "model.safetensors" in entry["reason"]
    assert http.post(f"{ROWS}/infer", json={"inputs": [rows_record()]}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[]", 400), (b'{"parameters": {"config": "{}"}}', 400), (bytes(10**5), 413)],
)
def test_load_takes_no_other_model_than_the_repositorys(http: TestClient, body: bytes, status: int) -> None:
    response = http.post("/v2/repository/models/tiny-kronecker/load", content=body)
    assert response.status_code == status and list(response.json()) == ["error"]


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


def test_energy_is_told_only_where_there_is_a_meter(http: TestClient) -> None:
    answer = http.post(f"{ROWS}/infer?energy=1", json={"inputs": [rows_record()]}).json()
    assert "parameters" not in answer
    assert "lacuna_energy_joules_total{" not in http.get("/metrics").text
