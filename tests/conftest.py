"""What tests of every package share: the backends."""

from collections.abc import Iterator

import pytest
import torch

from lacuna_kernels import Backend, gpu_count, open_backend
from lacuna_kernels.cuda.compiler import Compiler
from lacuna_kernels.cuda.fill import fill
from lacuna_kernels.cuda.variants import SHIPPED


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile what the selected GPU tests will ask for on all cores at once, not one by one as they ask."""
    compiler = Compiler()
    selected = any(item.get_closest_marker("gpu") or item.get_closest_marker("sanitize") for item in session.items)
    if selected and gpu_count() and compiler.nvcc is not None:
        major, minor = torch.cuda.get_device_capability()
        fill(compiler, SHIPPED, [f"sm_{major}{minor}"])


def _skip_without_gpu() -> None:
    if not gpu_count():
        pytest.skip("no CUDA device, or no pycuda")


@pytest.fixture(scope="session")
def cuda_backend() -> Iterator[Backend]:
    """The first GPU; opened once, since one process has one context per device."""
    _skip_without_gpu()
    opened = open_backend("cuda")
    yield opened
    opened.close()
