"""The CUDA driver's own library, for what neither torch nor PyCUDA does; its calls go to the current context."""

import ctypes
from functools import cache

from lacuna_kernels.errors import DeviceError


@cache
def library() -> ctypes.CDLL:
    """The library, loaded on first use."""
    return ctypes.CDLL("libcuda.so.1")


def check(code: int, what: str) -> None:
    """Raise DeviceError with the driver's reason unless a call went well."""
    if code:
        reason = ctypes.c_char_p()
        library().cuGetErrorString(code, ctypes.byref(reason))
        raise DeviceError(f"{what}: {reason.value.decode() if reason.value else code}")


def current_context() -> int:
    """The context that is current on this thread, 0 for none."""
    context = ctypes.c_void_p()
    check(library().cuCtxGetCurrent(ctypes.byref(context)), "the current context")
    return context.value or 0


def make_current(context: int) -> None:
    """Make a context current on this thread."""
    check(library().cuCtxSetCurrent(ctypes.c_void_p(context)), "making a context current")
