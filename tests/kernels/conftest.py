"""What tests of kernels share: the GPU that some are for, and a package that others are held against."""

import os
import warnings
from collections.abc import Iterator

import pytest
import torch

from lacuna_kernels import Backend, Graph, Options, Precision, Program, gpu_count, random_weights
from lacuna_kernels.cuda import sparse_steps
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.sparse_conv import pack_weight
from lacuna_kernels.cuda.sparse_conv_tiles import Tile
from tests.kernels.small_networks import Compiled

HEADS = (5, 19)  # classes of the heads, linear layers that sparse convolutions run, which no table is asked for


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    """The first GPU."""
    if not gpu_count():
        pytest.skip("no CUDA device, or no pycuda")
    opened = Device()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def hopper(device: Device) -> Device:
    """The first GPU, if it is a Hopper."""
    if not device.limits.hopper:
        pytest.skip("not a Hopper GPU")
    return device


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where kernels are that were compiled for the CPU, for all workers of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    (shared / "simulated").mkdir(exist_ok=True)
    return shared / "simulated"


@pytest.fixture(scope="module")
def lazylinop():
    """The package lazylinop; a GPU host may lack it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of packages it could also use
        pytest.importorskip("lazylinop.butterfly")
        pytest.importorskip("lazylinop.signal")
        return pytest.importorskip("lazylinop")


@pytest.fixture(scope="module")
def butterfly(lazylinop):
    """Its Kronecker-sparse layers and butterfly factorisation."""
    return lazylinop.butterfly


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Tile]:
    """The tiles that weights of sparse convolutions are packed for, one after the other."""
    tiles = list[Tile]()

    def pack(weight: torch.Tensor, dtype: torch.dtype, tile: Tile, shortcut: torch.Tensor | None) -> object:
        if weight.shape[2] not in HEADS:
            tiles.append(tile)
        return pack_weight(weight, dtype, tile, shortcut)

    monkeypatch.setattr(sparse_steps, "pack_weight", pack)
    return tiles


@pytest.fixture
def compiled(cuda_backend: Backend) -> Iterator[Compiled]:
    """Compiles a network, and closes it when the test is over."""
    programs = []

    def build(graph: Graph, precision: Precision, **options: int) -> Program:
        programs.append(cuda_backend.compile(graph, random_weights(graph, 1), Options(precision, **options)))
        return programs[-1]

    yield build
    for program in programs:
        program.close()
