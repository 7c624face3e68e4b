"""Opening a device."""

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Literal

import torch

from lacuna_kernels.cpu import CpuBackend
from lacuna_kernels.errors import DeviceError, InputError, Unsupported
from lacuna_kernels.model import Model
from lacuna_kernels.ops.kronecker_linear import KroneckerLinear
from lacuna_kernels.ops.linear import Linear
from lacuna_kernels.ops.sparse_conv import SparseConv
from lacuna_kernels.program import Backend, DeviceInfo, MemoryUse, Options, Tuning
from lacuna_kernels.types import Batch

log = logging.getLogger(__name__)

DeviceKind = Literal["auto", "cpu", "cuda"]
ObjectiveName = Literal["latency", "energy"]

_NO_PYCUDA = "no CUDA device is used without pycuda (pip install '.[gpu]' in a checkout of Lacuna)"


def open_backend(kind: DeviceKind = "auto", index: int = 0) -> Backend:
    """Open a device on the calling thread, which owns it from then on.

    auto takes a GPU if there is one that can be used, else the CPU, and warns if there is one that cannot. Raises
    DeviceError with the reason.
    """
    if kind == "cpu" or (kind == "auto" and not gpu_count()):
        if kind == "auto" and torch.cuda.device_count():
            log.warning("%s: the CPU is used, though there is a GPU", _NO_PYCUDA)
        return CpuBackend()
    check_gpu()
    from lacuna_kernels.cuda.backend import CudaBackend  # noqa: PLC0415  pycuda needs a driver to be imported

    backend: Backend = CudaBackend(index)
    return backend


def tune(
    model: Model,
    options: Options,
    costs: Sequence[int],
    objective: ObjectiveName = "latency",
    *,
    samples: Sequence[Batch] = (),
    index: int = 0,
    meter: Callable[[DeviceInfo], Callable[[], float]] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
    notice: Callable[[str], None] = lambda text: None,
) -> Tuning:
    """Measure the kernels that could compute a model's linear layers and sparse convolutions on a GPU, and keep that.

    options   as the model is served: the plans that are tuned are those that its programs make
    costs     batches to measure linear layers for, in rows or points
    samples   batches of real clouds to measure sparse convolutions on
    meter     returns what reads the joules that a GPU has used since some moment; needed for "energy"
    progress  called with how many measurements are done, how many there are, and what comes next
    notice    called with what somebody should know: that a damaged table was set aside

    Every program compiled on such a GPU from now on goes by the table. Raises Unsupported if the model has no such
    layers, InputError if it has sparse convolutions and there are no samples, CapacityExceeded and DeviceError.
    """
    if not any(isinstance(node, KroneckerLinear | Linear | SparseConv) for node in model.graph.nodes):
        raise Unsupported("there is nothing to tune: the model has no linear, kronecker_linear or sparse_conv nodes")
    if not samples and any(isinstance(node, SparseConv) for node in model.graph.nodes):
        raise InputError("sparse convolutions are measured on real clouds: the model has some, and samples are missing")
    if objective == "energy" and meter is None:
        raise ValueError("tuning by energy needs a meter")
    check_gpu()
    from lacuna_kernels.cuda.backend import CudaBackend  # noqa: PLC0415  see open_backend
    from lacuna_kernels.cuda.measurement import Objective  # noqa: PLC0415

    backend = CudaBackend(index)
    try:
        counter = meter(backend.device) if meter and objective == "energy" else None
        by = Objective(objective)
        return backend.tune(model.graph, model.weights, options, costs, samples, by, counter, progress, notice)
    finally:
        backend.close()


def memory_use(model: Model, options: Options, costs: Sequence[int]) -> MemoryUse:
    """What a model would take on an H200, or another GPU of its kind, worked out without a GPU.

    costs  of the batches that plans have room for, in rows or points

    Raises Unsupported if it can run on no GPU.
    """
    from lacuna_kernels.cuda.on_paper import memory_use as on_paper  # noqa: PLC0415  a CPU alone needs none of it

    return on_paper(model, options, costs)


def check_gpu() -> None:
    """Raise DeviceError, which says what is missing, unless there is a GPU that can be used."""
    if not torch.cuda.device_count():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
        raise DeviceError(f"no CUDA device: torch {torch.__version__} (built for {build}) finds none")
    if not find_spec("pycuda"):
        raise DeviceError(_NO_PYCUDA)


def gpu_count() -> int:
    """How many GPUs can be used: 0 without a driver or without pycuda."""
    return torch.cuda.device_count() if find_spec("pycuda") else 0
