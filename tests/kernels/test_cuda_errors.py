"""What torch and PyCUDA raise becomes one of our errors, by who can mend it."""

import ctypes

import pytest
import torch

from lacuna_kernels import DeviceError, DeviceOutOfMemory, InputError
from lacuna_kernels.cuda.device import device_errors
from lacuna_kernels.cuda.launch import Function, Shape


def raised(error: Exception) -> Exception:
    with pytest.raises(Exception) as caught, device_errors("a test"):
        raise error
    return caught.value


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("tried"), MemoryError("host"), RuntimeError("CUDA error: out of memory\nCompile with ...")],
    ids=["torch", "host", "pinned"],
)
def test_whoever_has_no_memory_it_is_device_out_of_memory(error: Exception) -> None:
    assert isinstance(raised(error), DeviceOutOfMemory)


def test_any_other_failure_of_the_device_is_a_device_error_of_one_line() -> None:
    found = raised(RuntimeError("CUDA error: an illegal memory access\nCompile with ..."))

    assert type(found) is DeviceError
    assert str(found) == "a test: CUDA error: an illegal memory access"


@pytest.mark.parametrize("error", [InputError("ours"), KeyError("a bug")], ids=["ours", "a bug"])
def test_our_own_errors_and_bugs_pass(error: Exception) -> None:
    assert raised(error) is error


@pytest.mark.parametrize("number", [2**31, -(2**31) - 1])
def test_an_int_that_a_kernel_cannot_hold_is_not_cut_off(number: int) -> None:
    function = Function(ctypes.c_void_p(), 1)

    with pytest.raises(DeviceError, match=str(number)):
        function.launch(0, Shape((1, 1, 1), (1, 1, 1), 0), [number])
