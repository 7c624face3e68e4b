"""Opening a device."""

from importlib.util import find_spec
from typing import Literal

import torch

from lacuna_kernels.cpu import CpuBackend
from lacuna_kernels.errors import DeviceError
from lacuna_kernels.program import Backend

DeviceKind = Literal["auto", "cpu", "cuda"]


def open_backend(kind: DeviceKind = "auto", index: int = 0) -> Backend:
    """Open a device on the calling thread, which owns it from then on.

    auto takes a GPU if there is one that can be used, else the CPU. Raises DeviceError with the reason.
    """
    if kind == "cpu" or (kind == "auto" and not gpu_count()):
        return CpuBackend()
    if not gpu_count():
        raise DeviceError("no CUDA device: torch finds none, or pycuda is not installed (pip install lacuna[gpu])")
    from lacuna_kernels.cuda.backend import CudaBackend  # noqa: PLC0415  pycuda needs a driver to be imported

    backend: Backend = CudaBackend(index)
    return backend


def gpu_count() -> int:
    """How many GPUs can be used: 0 without a driver or without pycuda."""
    return torch.cuda.device_count() if find_spec("pycuda") else 0
