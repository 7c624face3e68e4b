"""Filling the cache ahead of time, as the container's image does."""

import shutil
from pathlib import Path

import pytest
import torch

from lacuna_kernels import DeviceError, gpu_count
from lacuna_kernels.cuda import argmax
from lacuna_kernels.cuda.check import GPUS
from lacuna_kernels.cuda.compiler import PORTABLE, PTX, Compiler
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.fill import fill, wanted
from lacuna_kernels.cuda.scan import VARIANTS
from lacuna_kernels.cuda.variants import SHIPPED


@pytest.mark.parametrize("gpu", GPUS)
def test_every_kernel_is_compiled_for_every_gpu_that_it_runs_on(gpu: str) -> None:
    asked = wanted(SHIPPED, [gpu])

    assert [variant for variant, _ in asked] == [v for v in SHIPPED if v.architecture_for(gpu) is not None]
    assert {v for v in SHIPPED if PORTABLE in v.architectures} <= {variant for variant, _ in asked}
    assert all(architecture == variant.architecture_for(gpu) for variant, architecture in asked)


@pytest.mark.skipif(Compiler().nvcc is None, reason="no nvcc")
def test_a_filled_cache_has_code_for_a_host_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = ("sm_80", "sm_90")
    assert fill(Compiler(tmp_path), VARIANTS, gpus) == 2 * len(VARIANTS)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    bare = Compiler(tmp_path)

    assert bare.nvcc is None
    assert all(bare.cubin(*pair).startswith(b"\x7fELF") for pair in wanted(VARIANTS, gpus))
    with pytest.raises(DeviceError, match="no nvcc to fill"):
        fill(bare, VARIANTS, gpus)


@pytest.mark.skipif(Compiler().nvcc is None, reason="no nvcc")
def test_a_gpu_that_nothing_was_compiled_for_gets_ptx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(Compiler(tmp_path), VARIANTS, ["sm_90", PTX])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    bare = Compiler(tmp_path)

    assert all(b".target sm_80" in bare.cubin(variant, "sm_103") for variant in VARIANTS)
    assert all(bare.cubin(variant, "sm_90").startswith(b"\x7fELF") for variant in VARIANTS)


@pytest.mark.gpu
def test_a_gpu_runs_ptx_where_there_is_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not gpu_count():
        pytest.skip("no CUDA device, or no pycuda")
    fill(Compiler(tmp_path), argmax.VARIANTS, [PTX])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    device = Device(cache=tmp_path)

    with torch.cuda.stream(device.stream):
        x, count = torch.randn(37, 19, device="cuda"), torch.tensor([37], dtype=torch.int32, device="cuda")
        labels = torch.full((37,), -1, dtype=torch.int32, device="cuda")
        argmax.argmax(device, x, count, labels)
        given, expected = labels.cpu(), x.argmax(1).int().cpu()
    device.close()

    assert torch.equal(given, expected)


def test_filling_with_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"no kernel is for sm_75|no nvcc"):
        fill(Compiler(tmp_path), VARIANTS, ["sm_75"])
