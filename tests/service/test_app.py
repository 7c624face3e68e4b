"""What holds for every request: health, errors, request ids, keys, limits, logs."""

import gzip
import json
import logging
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from lacuna_service.logs import JsonFormatter, TextFormatter
from lacuna_service.routes.health import OPEN_PATHS
from tests.service import networks
from tests.service.http_app import json_input, open_app

INFER = "/v2/models/tiny-kronecker/infer"
KEY = "a-long-enough-key"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networks.fill_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def http(repository: Path) -> Iterator[TestClient]:
    with open_app(repository, body_limit_mib=0.01) as client:
        yield client


@pytest.fixture(scope="module")
def locked(repository: Path) -> Iterator[TestClient]:
    with open_app(repository, api_key=KEY, access_log=True) as client:
        yield client


@pytest.mark.parametrize("path", ["/version", "/docs", "/openapi.json", "/v2", *sorted(OPEN_PATHS)])
def test_pages_for_whoever_runs_the_server_answer(http: TestClient, path: str) -> None:
    response = http.get(path)
    assert response.status_code == 200 and response.content


def test_server_lists_the_extensions_it_has(http: TestClient) -> None:
    metadata = http.get("/v2").json()
    assert metadata["name"] == "lacuna" and metadata["version"] == "1.2.3"
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(metadata["extensions"])


def test_documents_describe_the_inference_paths(http: TestClient) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    for path in (INFER, "/v2/models/tiny-minkunet/pointcloud"):
        assert path.replace("tiny-kronecker", "{model}").replace("tiny-minkunet", "{model}") in paths


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/nobody/config", 404),
        ("GET", "/v2/models/nobody/stats", 404),
        ("GET", "/v2/models/nobody/ready", 404),
        ("GET", "/v2/models/tiny-kronecker/versions/7/ready", 404),
        ("GET", INFER, 405),
        ("PUT", "/v2", 405),
        ("DELETE", "/v2/repository/index", 405),
        ("POST", "/v2/repository/models/tiny-kronecker/load", 400),
        ("POST", "/v2/repository/models/tiny-kronecker/unload", 400),
        ("GET", "/v2/trace/setting", 404),
    ],
)
def test_every_failure_is_an_error_object(http: TestClient, method: str, path: str, status: int) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert list(response.json()) == ["error"] and response.json()["error"]
    assert response.headers["content-type"] == "application/json"


def test_loading_is_off_unless_the_operator_allows_it(http: TestClient) -> None:
    response = http.post("/v2/repository/models/tiny-kronecker/unload")
    assert "--model-control explicit" in response.json()["error"]
    assert http.get("/v2/models/tiny-kronecker/ready").status_code == 200


def test_body_above_the_limit_is_refused(http: TestClient) -> None:
    for content in (bytes(11_000), iter([bytes(1000)] * 11)):
        response = http.post(INFER, content=content)
        assert response.status_code == 413 and "10485" in response.json()["error"]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_bomb_is_refused(http: TestClient, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(bytes(2_000_000))
    response = http.post(INFER, content=bomb, headers={"Content-Encoding": encoding})
    assert len(bomb) < 10_000 and response.status_code == 413 and "decompression" in response.json()["error"]


def test_request_id_is_the_clients_or_ours(http: TestClient) -> None:
    assert http.get("/healthz", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    headers: list[dict[str, str]] = [{}, {"X-Request-Id": "x" * 200}]
    ours = [http.get("/nowhere", headers=given).headers["x-request-id"] for given in headers]
    assert all(len(given) == 16 for given in ours) and ours[0] != ours[1]


def test_what_nobody_foresaw_is_a_500_with_the_id_and_a_log_line(
    http: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("lacuna_service.routes.infer.decode_request", fail)
    response = http.post(INFER, json={"inputs": [json_input("x", networks.rows(1))]}, headers={"X-Request-Id": "q7"})
    assert response.status_code == 500 and "q7" in response.json()["error"] and "secret" not in response.text
    assert any(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in caplog.records)


@pytest.mark.parametrize("authorization", [None, b"Bearer wrong", KEY.encode(), b"Basic x", b"Bearer \xff"])
def test_without_the_key_only_health_and_metrics_answer(locked: TestClient, authorization: bytes | None) -> None:
    raw = {} if authorization is None else {b"Authorization": authorization}
    for path in sorted(OPEN_PATHS):
        assert locked.get(path, headers=raw).status_code == 200
    for path in ("/v2", "/docs", "/version", "/v2/models/tiny-kronecker", "/nowhere"):
        response = locked.get(path, headers=raw)
        assert response.status_code == 401 and list(response.json()) == ["error"]
        assert response.headers["www-authenticate"] == "Bearer"
    assert locked.post(INFER, headers=raw).status_code == 401


def test_with_the_key_all_answers(locked: TestClient) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    assert locked.get("/v2", headers=headers).status_code == 200
    request = {"inputs": [json_input("x", networks.rows(1))]}
    assert locked.post(INFER, json=request, headers=headers).status_code == 200


def test_access_log_has_one_line_a_request_and_never_the_key(
    locked: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        locked.get("/nowhere?secret=1", headers={"Authorization": f"Bearer {KEY}"})
    (record,) = [record for record in caplog.records if record.getMessage() == "request"]
    assert vars(record)["status"] == 404 and vars(record)["path"] == "/nowhere"
    assert KEY not in JsonFormatter().format(record)


def test_log_lines_are_json_with_what_was_said_beside(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test")
    with caplog.at_level(logging.INFO):
        try:
            raise ValueError("reason\n")
        except ValueError:
            logger.exception("it %s", "failed", extra={"model": "m", "path": Path("a")})
    line = JsonFormatter().format(caplog.records[-1])
    assert "\n" not in line
    document = json.loads(line)
    assert document.items() >= {"message": "it failed", "model": "m", "path": "a", "level": "error"}.items()
    assert "ValueError: reason" in document["exception"]
    assert "it failed model=m path=a" in TextFormatter().format(caplog.records[-1]).splitlines()[0]
