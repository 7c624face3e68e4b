"""What tests of kernels share: the GPU that some are for, and a package that others are held against."""

import os
import warnings
from collections.abc import Iterator

import pytest

from lacuna_kernels import gpu_count
from lacuna_kernels.cuda.device import Device


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    """The first GPU."""
    if not gpu_count():
        pytest.skip("no CUDA device, or no pycuda")
    opened = Device()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def hopper(device: Device) -> Device:
    """The first GPU, if it is a Hopper."""
    if not device.limits.hopper:
        pytest.skip("not a Hopper GPU")
    return device


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where kernels are that were compiled for the CPU, for all workers of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    (shared / "simulated").mkdir(exist_ok=True)
    return shared / "simulated"


@pytest.fixture(scope="module")
def lazylinop():
    """The package lazylinop; a GPU host may lack it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of packages it could also use
        pytest.importorskip("lazylinop.butterfly")
        pytest.importorskip("lazylinop.signal")
        return pytest.importorskip("lazylinop")


@pytest.fixture(scope="module")
def butterfly(lazylinop):
    """Its Kronecker-sparse layers and butterfly factorisation."""
    return lazylinop.butterfly
