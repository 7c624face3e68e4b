"""What tests of kernels share: the GPU that some are for."""

from collections.abc import Iterator

import pytest

from lacuna_kernels import gpu_count
from lacuna_kernels.cuda.device import Device


@pytest.fixture(scope="module")
def hopper() -> Iterator[Device]:
    """The first GPU, if it is a Hopper."""
    if not gpu_count():
        pytest.skip("no CUDA device, or no pycuda")
    opened = Device()
    if not opened.limits.hopper:
        opened.close()
        pytest.skip("not a Hopper GPU")
    yield opened
    opened.close()
