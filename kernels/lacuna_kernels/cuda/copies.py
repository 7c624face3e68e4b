"""Copies between a device and pinned memory, in the order of a stream (CUDA driver API, cuMemcpyAsync)."""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lacuna_kernels.cuda.libcuda import check, library

PIECE_BYTES = 512 << 10
"""What is staged at a time: long enough for a copy's overhead not to matter, and a fraction of a point cloud."""


def copy(target: Tensor, source: Tensor, stream: torch.cuda.Stream) -> None:
    """Enqueue a copy of as many bytes as the smaller holds, from the start of one to the start of the other.

    One lies on the device, the other in pinned memory. Both are contiguous, and the caller keeps them until the copy
    has run: torch knows nothing of it, and would hand their memory to somebody else.
    """
    _enqueue(target.data_ptr(), source.data_ptr(), min(target.nbytes, source.nbytes), stream.cuda_stream)


def copy_staged(target: Tensor, source: Tensor, staging: Tensor, stream: torch.cuda.Stream) -> None:
    """The same for a source in any memory of the host, which is needed no longer afterwards.

    It goes by way of pinned memory, as large as the target, in pieces: one travels while the next is copied there.
    """
    here, way, there = source.data_ptr(), staging.data_ptr(), target.data_ptr()
    size, handle = min(target.nbytes, source.nbytes), stream.cuda_stream
    for start in range(0, size, PIECE_BYTES):
        length = min(PIECE_BYTES, size - start)
        ctypes.memmove(way + start, here + start, length)
        _enqueue(there + start, way + start, length, handle)


def _enqueue(target: int, source: int, size: int, stream: int) -> None:
    if size:  # nothing has no address
        check(_memcpy_async()(target, source, size, stream), "a copy to or from the device")


@cache
def _memcpy_async() -> Any:
    function = library().cuMemcpyAsync
    function.argtypes = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p)
    return function
