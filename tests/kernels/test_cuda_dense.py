"""The elementwise, layer norm and argmax kernels, alone."""

import shutil
import subprocess
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from lacuna_kernels import Backend, gpu_count
from lacuna_kernels.cuda.argmax import argmax
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.elementwise import elementwise
from lacuna_kernels.cuda.layer_norm import layer_norm
from lacuna_kernels.ops.activation import Activation, activate
from tests.cases import DTYPES, assert_close, tolerance

gpu = pytest.mark.gpu
IN_USE, ROOM = 37, 50
POISON = -7.0


@pytest.fixture
def device() -> Iterator[Device]:
    if not gpu_count():
        pytest.skip("no CUDA device, or no pycuda")
    opened = Device()
    with torch.cuda.stream(opened.stream):
        yield opened
    opened.close()


def count() -> torch.Tensor:
    return torch.tensor([IN_USE], dtype=torch.int32, device="cuda")


@gpu
@pytest.mark.parametrize("activation", [None, *Activation])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_norms_and_activations_of_the_rows_in_use(device: Device, dtype, activation) -> None:
    x, plus = (torch.randn(ROOM, 24, device="cuda").to(dtype.torch) for _ in range(2))
    scale, shift = torch.randn(2, 4, device="cuda")
    y = torch.full((ROOM, 40), POISON, device="cuda", dtype=dtype.torch)

    elementwise(
        device, y[:, 8:32], x, count(), plus=plus, affine=(scale, shift), inner=6, activation=activation, slope=0.3
    )

    total = (x.float() + plus.float()).view(ROOM, 4, 6) * scale[:, None] + shift[:, None]
    expected = activate(total.view(ROOM, 24), activation, 0.3)
    assert_close(y[:IN_USE, 8:32].float(), expected[:IN_USE], tolerance(dtype.torch))
    y[:IN_USE, 8:32] = POISON
    assert bool((y == POISON).all())


@gpu
@pytest.mark.parametrize(("features", "start"), [(1, 0), (7, 0), (24, 0), (24, 1), (384, 0), (1025, 0), (4096, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_of_the_tokens_in_use(device: Device, dtype, features: int, start: int) -> None:
    tokens, shape = 3, (3 * ROOM, features)
    y = torch.full(shape, POISON, device="cuda", dtype=dtype.torch)
    room = torch.randn(y.numel() + start, device="cuda") + 10  # a mean far from 0 must not take the variance's digits
    x = room.to(dtype.torch)[start:].view(shape)  # one element on, 16 bytes cannot be read at once
    weight, bias = torch.randn(2, features, device="cuda")

    layer_norm(device, y, x, weight, bias, 1e-3, count(), tokens)

    used = tokens * IN_USE
    expected = functional.layer_norm(x[:used].double(), (features,), weight.double(), bias.double(), 1e-3)
    assert_close(y[:used].float(), expected.float(), tolerance(dtype.torch, terms=1000))
    assert bool((y[used:] == POISON).all())


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_of_equal_scores_is_the_label(device: Device, dtype) -> None:
    x = torch.randint(-3, 4, (ROOM, 19), device="cuda").to(dtype.torch)
    x[3, 7] = torch.nan
    x[4] = -torch.inf
    labels = torch.full((ROOM,), -1, dtype=torch.int32, device="cuda")

    argmax(device, x, count(), labels)

    expected = (x == x.amax(-1, keepdim=True)).int().argmax(-1).int()
    assert torch.equal(labels[:IN_USE], expected[:IN_USE])
    assert bool((labels[IN_USE:] == -1).all())


@gpu
def test_a_device_is_known_by_the_name_that_its_driver_gives_it(cuda_backend: Backend) -> None:
    if shutil.which("nvidia-smi") is None:
        pytest.skip("no nvidia-smi")
    command = ["nvidia-smi", "--query-gpu=uuid,name", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert f"{cuda_backend.device.uuid}, {cuda_backend.device.name}" in listed
