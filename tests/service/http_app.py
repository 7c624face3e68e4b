"""The application on a real engine, called without a socket."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from lacuna_service.app import create_app
from lacuna_service.engine import Engine
from lacuna_service.metrics import Metrics
from lacuna_service.server import engine_config
from lacuna_service.settings import Settings


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
