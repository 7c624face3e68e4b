"""One real server for all system tests: rows `tiny-kronecker` (versions 1 and 2) and clouds `tiny-minkunet`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.networks import fill_repository
from tests.system.running import Running, serving


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of models that `server` serves."""
    return fill_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Running]:
    """A running server; clients may load and unload, so a test that unloads must load again."""
    with serving(repository, "--model-control", "explicit") as running:
        yield running
