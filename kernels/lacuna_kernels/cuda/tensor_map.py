"""Tensor maps: what the copy engine of a Hopper GPU knows of a matrix (CUDA driver API, cuTensorMapEncodeTiled)."""

import ctypes
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from lacuna_kernels.cuda.libcuda import library
from lacuna_kernels.errors import DeviceError

_BYTES, _ALIGNMENT = 128, 64
_TYPES = {torch.float16: 6, torch.float32: 7, torch.bfloat16: 9}  # CUtensorMapDataType


class Swizzle(IntEnum):
    """How a box is laid out in shared memory: the bytes within which 16-byte pieces change places."""

    NONE = 0
    BYTES_32 = 1
    BYTES_64 = 2
    BYTES_128 = 3


class Promotion(IntEnum):
    """How much of the neighbourhood is brought into the second-level cache."""

    NONE = 0
    BYTES_64 = 1
    BYTES_128 = 2
    BYTES_256 = 3


def tensor_map(
    tensor: Tensor,
    sizes: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    swizzle: Swizzle = Swizzle.NONE,
    promotion: Promotion = Promotion.BYTES_128,
) -> bytes:
    """Describe the memory that a tensor starts at; what a box has outside it reads as zero and is not written.

    sizes    elements along each axis, fastest first, up to 5; the fastest is contiguous
    strides  bytes between neighbours along each axis but the fastest: multiples of 16
    box      elements of a copy along each axis, at most 256; the fastest a multiple of 16 bytes

    Raises DeviceError with the numbers if the driver refuses them.
    """
    rank = len(sizes)
    memory = ctypes.create_string_buffer(_BYTES + _ALIGNMENT)
    address = -(-ctypes.addressof(memory) // _ALIGNMENT) * _ALIGNMENT
    code = library().cuTensorMapEncodeTiled(
        ctypes.c_void_p(address),
        _TYPES[tensor.dtype],
        rank,
        ctypes.c_void_p(tensor.data_ptr()),
        (ctypes.c_uint64 * rank)(*sizes),
        (ctypes.c_uint64 * max(rank - 1, 1))(*strides),
        (ctypes.c_uint32 * rank)(*box),
        (ctypes.c_uint32 * rank)(*([1] * rank)),
        0,
        swizzle.value,
        promotion.value,
        0,
    )
    if code:
        raise DeviceError(f"no tensor map: error {code} for sizes {sizes}, strides {strides} bytes, box {box}")
    return ctypes.string_at(address, _BYTES)
