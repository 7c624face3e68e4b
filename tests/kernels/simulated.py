"""Kernels run on the CPU: their sources, with tests/kernels/simulation in place of the instructions of Hopper GPUs.

It shows that threads wait for one another as they must, that copies and products are where they should be, and that
sums are right to a few roundings. It knows nothing of speed, of the memory model, or of the order of sums in a product;
and as clusters run one after another, a block that waits for what another of the launch makes finds it there.
"""

import ctypes
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lacuna_kernels.cuda.compiler import SOURCES, Compiler, Variant
from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.launch import Argument, Dim3
from lacuna_kernels.cuda.tensor_map import Promotion, Swizzle

KERNEL_NAME = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(.*?\)\s+)?(\w+)\(')
SIMULATION = Path(__file__).parent / "simulation"


class TensorMap(ctypes.Structure):
    """As simulation/hopper.cuh has it."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("sizes", ctypes.c_long * 4),
        ("strides", ctypes.c_long * 3),
        ("box", ctypes.c_int * 4),
        ("swizzle_bytes", ctypes.c_int),
        ("element_bytes", ctypes.c_int),
        ("padding", ctypes.c_char * 40),
    )


def tensor_map(
    tensor: Tensor,
    sizes: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    swizzle: Swizzle = Swizzle.NONE,
    promotion: Promotion = Promotion.NONE,
) -> bytes:
    """As cuda/tensor_map.py, with the driver's limits."""
    assert len(sizes) == len(box) == len(strides) + 1 == 4
    assert all(stride % 16 == 0 for stride in strides)
    assert all(1 <= side <= 256 for side in box)
    assert box[0] * tensor.element_size() % 16 == 0
    fields = (
        tensor.data_ptr(),
        (ctypes.c_long * 4)(*sizes),
        (ctypes.c_long * 3)(*strides),
        (ctypes.c_int * 4)(*box),
        16 << swizzle.value if swizzle else 0,
        tensor.element_size(),
    )
    return bytes(TensorMap(*fields))


class SimulatedDevice:
    """In place of a Device: as many multiprocessors as a test wants, and one order of events for each seed.

    plain  whether its kernels take nothing of Hopper: then those of a source are compiled together
    """

    def __init__(self, folder: Path, multiprocessors: int, seed: int, *, plain: bool = False) -> None:
        self.folder, self.seed, self.program = folder, seed, "blocks.cpp" if plain else "launch.cpp"
        self.limits = DeviceLimits(multiprocessors, 232_448, "sm_90")
        self.tile_counter = 0

    def at_once(self, launches: Sequence[Callable[[], None]]) -> None:
        for launch in launches:
            launch()

    def kernel(self, variant: Variant) -> "SimulatedKernel":
        built = variant if self.program == "launch.cpp" else replace(variant, function="all")
        library = self.folder / f"{hashlib.sha256(str(built).encode()).hexdigest()[:16]}.so"
        if not library.exists():
            compile_for_the_cpu(built, self.program, library)
        return SimulatedKernel(ctypes.CDLL(str(library)), variant, self.seed, whole=built == variant)


class SimulatedKernel:
    """A kernel of a SimulatedDevice."""

    def __init__(self, library: ctypes.CDLL, variant: Variant, seed: int, *, whole: bool) -> None:
        self._launch = library["launch" if whole else f"launch_{variant.function}"]
        self._launch.restype = ctypes.c_char_p
        self._variant, self._seed = variant, seed

    def __call__(self, grid: Dim3, block: Dim3, *args: Argument) -> None:
        values = [_value(arg) for arg in args]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        cluster, shared_bytes = dict(self._variant.constants).get("TEAM", 1), self._variant.dynamic_shared_bytes
        late_products = self._seed % 2
        failure = self._launch(*grid[:2], *block[:2], cluster, shared_bytes, late_products, self._seed, pointers)
        assert failure is None, failure.decode()


def compile_for_the_cpu(variant: Variant, program: str, library: Path) -> None:
    """By nvcc, which knows where CUDA's headers are, as C++; written beside and renamed, as others may do the same."""
    nvcc = Compiler().nvcc
    if nvcc is None:
        pytest.skip("no nvcc")
    folder = Path(tempfile.mkdtemp(dir=library.parent))
    for source in (SOURCES / variant.source, *SOURCES.glob("*.cuh"), *SIMULATION.iterdir()):  # the last of a name stays
        (folder / source.name).write_text(source.read_text())
    defines = [f"-D{name}={value}" for name, value in variant.constants]
    names = KERNEL_NAME.findall((SOURCES / variant.source).read_text())
    defines += [f"-DKERNEL={variant.function}", f'-DSOURCE="{variant.source}"']
    defines += [f"-DKERNELS={' '.join(f'X({name})' for name in names)}"]
    options = ["-x", "c++", "-std=c++17", "-O1", "-shared", "-Xcompiler=-fPIC,-w"]
    command = [str(nvcc), *options, *defines, "-o", str(folder / library.name), str(folder / program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / library.name).rename(library)


def _value(arg: Argument) -> Any:
    if isinstance(arg, Tensor) or arg is None:
        return ctypes.c_void_p(0 if arg is None else arg.data_ptr())
    if isinstance(arg, bytes):
        return ctypes.create_string_buffer(arg, len(arg))
    return ctypes.c_float(arg) if isinstance(arg, float) else ctypes.c_int32(int(arg))


def guarded(rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A poisoned matrix [rows, width], and the memory that it lies in the middle of."""
    guard = 4096
    memory = torch.full((rows * width + 2 * guard,), torch.nan, dtype=dtype)
    return memory[guard:-guard].view(rows, width), memory
