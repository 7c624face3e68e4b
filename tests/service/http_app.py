"""The application on a real engine, called without a socket: requests to it, and what its answers hold."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi.testclient import TestClient
from httpx import Response
from numpy.typing import NDArray

from lacuna_service.app import create_app
from lacuna_service.engine import Engine
from lacuna_service.metrics import Metrics
from lacuna_service.server import engine_config
from lacuna_service.settings import Settings
from tests.service import networks

ROWS, CLOUDS = "/v2/models/tiny-kronecker", "/v2/models/tiny-minkunet"
LENGTH = "Inference-Header-Content-Length"


@contextmanager
def open_app(repository: Path, **settings: Any) -> Iterator[TestClient]:
    """Serve a repository on the CPU, and wait until it is ready."""
    chosen = Settings(repository=repository, device="cpu", cpu_threads=1, **settings)
    app = create_app(chosen, Engine(engine_config(chosen), Metrics()), "1.2.3")
    with TestClient(app, raise_server_exceptions=False) as client:
        until = time.monotonic() + 60
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < until, client.post("/v2/repository/index").text
            time.sleep(0.01)
        yield client


def json_input(name: str, array: Any, datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    """An input of a request, in JSON form."""
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.tolist(), **more}


def rows_record(**changes: Any) -> dict[str, Any]:
    """The input of a request to ROWS, of one row."""
    return json_input("x", networks.rows(1)) | changes


def binary_request(arrays: dict[str, tuple[str, NDArray[Any]]], **header: Any) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a binary request, by name of an input its datatype and values."""
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
