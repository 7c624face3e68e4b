"""Metadata, statistics, metrics and the repository over HTTP, on a real engine."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service import networks
from tests.service.http_app import CLOUDS, ROWS, json_input, rows_record


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
