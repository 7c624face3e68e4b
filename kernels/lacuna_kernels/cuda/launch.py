"""Launches that PyCUDA cannot make (CUDA driver API, cuLaunchKernelEx): by clusters, and beside the kernel before."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lacuna_kernels.cuda.libcuda import check, library
from lacuna_kernels.errors import DeviceError

Dim3 = tuple[int, int, int]
Argument = Tensor | np.int64 | int | float | bytes | None

_PORTABLE_CLUSTER = 8
_FUNCTION_SHARED_BYTES, _FUNCTION_LARGE_CLUSTERS = 8, 14  # CUfunction_attribute
_CLUSTER_DIMENSION, _PROGRAMMATIC_SERIALIZATION = 4, 6  # CUlaunchAttributeID


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: what, and a union of 64 bytes."""

    _fields_ = (("id", ctypes.c_int), ("padding", ctypes.c_int), ("value", ctypes.c_uint * 16))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """A launch: blocks, threads of a block, and shared memory beyond what the source declares."""

    grid: Dim3
    block: Dim3
    shared_bytes: int


class Module:
    """Machine code in the current context."""

    def __init__(self, code: bytes) -> None:
        self._handle = ctypes.c_void_p()
        check(library().cuModuleLoadData(ctypes.byref(self._handle), code), "cuModuleLoadData")

    def function(self, name: str, shared_bytes: int, cluster: int) -> "Function":
        """Return a function that may be launched with so much dynamic shared memory and by such clusters."""
        handle = ctypes.c_void_p()
        check(library().cuModuleGetFunction(ctypes.byref(handle), self._handle, name.encode()), f"no function {name}")
        check(library().cuFuncSetAttribute(handle, _FUNCTION_SHARED_BYTES, shared_bytes), f"{shared_bytes} bytes")
        if cluster > _PORTABLE_CLUSTER:
            check(library().cuFuncSetAttribute(handle, _FUNCTION_LARGE_CLUSTERS, 1), f"clusters of {cluster}")
        return Function(handle, cluster)

    def close(self) -> None:
        """Unload; nothing of it may be running."""
        check(library().cuModuleUnload(self._handle), "cuModuleUnload")


class Function:
    """A function that is launched by clusters along x and that may start before the kernel before it has ended.

    It must execute griddepcontrol.wait before it touches what the kernel before it writes or reads, but for what is
    read alone and was complete before that began; and before it ends (src/launch_order.cuh).
    """

    def __init__(self, handle: ctypes.c_void_p, cluster: int) -> None:
        self._handle, self._cluster = handle, cluster

    def launch(self, stream: int, shape: Shape, args: Sequence[Argument]) -> None:
        """Enqueue on a stream; raises DeviceError with the driver's reason, or for an int of over 32 bits."""
        attributes = (_Attribute * 2)()
        attributes[0].id, attributes[0].value[0] = _PROGRAMMATIC_SERIALIZATION, 1
        attributes[1].id = _CLUSTER_DIMENSION
        attributes[1].value[:3] = [self._cluster, 1, 1]
        config = _Config(
            shape.grid,
            shape.block,
            shape.shared_bytes,
            stream,
            ctypes.addressof(attributes),
            1 if self._cluster == 1 else 2,
        )
        values = [_value(arg) for arg in args]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        code = library().cuLaunchKernelEx(ctypes.byref(config), self._handle, pointers, None)
        check(code, f"a launch of {shape} by clusters of {self._cluster}")


def _value(arg: Argument) -> Any:
    if isinstance(arg, Tensor) or arg is None:
        return ctypes.c_void_p(0 if arg is None else arg.data_ptr())
    if isinstance(arg, bytes):
        return ctypes.create_string_buffer(arg, len(arg))
    if isinstance(arg, np.int64):
        return ctypes.c_int64(int(arg))
    if isinstance(arg, float):
        return ctypes.c_float(arg)
    if not -(2**31) <= arg < 2**31:  # ctypes would drop the upper bits
        raise DeviceError(f"a kernel's int has 32 bits, got {arg}")
    return ctypes.c_int32(arg)
