"""What is said where there is no GPU that can be used."""

import pytest
import torch

from bench.bench_kronecker import main
from lacuna_kernels import DeviceError, backend, open_backend


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture
def no_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(backend, "find_spec", lambda name: None)


def test_no_gpu_is_told_from_no_pycuda(no_gpu: None):
    with pytest.raises(DeviceError, match=r"torch .* finds none"):
        open_backend("cuda")


def test_no_pycuda_is_told_with_how_to_get_it(no_pycuda: None):
    with pytest.raises(DeviceError, match=r"without pycuda \(pip install '\.\[gpu\]' in a checkout"):
        open_backend("cuda")


def test_auto_takes_the_cpu_and_warns_where_a_gpu_lacks_pycuda(no_pycuda: None, caplog: pytest.LogCaptureFixture):
    assert open_backend("auto").device.name == open_backend("cpu").device.name
    assert ["the CPU is used, though there is a GPU" in record.message for record in caplog.records] == [True]


def test_auto_takes_the_cpu_without_a_word_where_there_is_no_gpu(no_gpu: None, caplog: pytest.LogCaptureFixture):
    assert open_backend("auto").device.name == open_backend("cpu").device.name
    assert not caplog.records


def test_a_benchmark_ends_with_one_line(no_gpu: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["bench_kronecker.py", "measure"])
    with pytest.raises(SystemExit, match=r"^no CUDA device: .* finds none$"):
        main()
