"""A server with small models, for what is asked of it over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.service import networks
from tests.service.http_app import open_app


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
