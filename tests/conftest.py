"""What tests of every package share: the backends."""

from collections.abc import Iterator

import pytest

from lacuna_kernels import Backend, gpu_count, open_backend


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


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every backend that this machine has."""
    if request.param == "cpu":
        return open_backend("cpu")
    _skip_without_gpu()
    opened: Backend = request.getfixturevalue("cuda_backend")
    return opened
