"""Compiling kernels by content, and what the assembler says of the shipped ones."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lacuna_kernels import DeviceError
from lacuna_kernels.cuda import kronecker_linear, sparse_conv_choice
from lacuna_kernels.cuda.check import check, targets, usages
from lacuna_kernels.cuda.compiler import SOURCES, Compiler, Variant
from lacuna_kernels.cuda.variants import SHIPPED

SOURCE = """
#include "factor.cuh"
#ifndef N
#define N 4
#endif
extern "C" __global__ void scale(float* x) { x[threadIdx.x] *= FACTOR * N; }
extern "C" __global__ void shift(float* x) { x[threadIdx.x] += FACTOR * N; }
"""
SCALE = Variant("a.cu", "scale")

needs_nvcc = pytest.mark.skipif(Compiler().nvcc is None, reason="no nvcc")


@pytest.fixture
def compiler(tmp_path: Path) -> Compiler:
    sources = tmp_path / "src"
    sources.mkdir()
    (sources / "a.cu").write_text(SOURCE)
    (sources / "factor.cuh").write_text("#define FACTOR 3\n")
    return Compiler(tmp_path / "cache", sources)


def test_functions_of_one_source_share_their_code(compiler: Compiler) -> None:
    assert compiler.digest(SCALE, "sm_80") == compiler.digest(Variant("a.cu", "shift"), "sm_80")


@pytest.mark.parametrize("change", ["constants", "architecture", "source", "header"])
def test_other_content_has_another_address(compiler: Compiler, change: str) -> None:
    before, variant, architecture = compiler.digest(SCALE, "sm_80"), SCALE, "sm_80"
    if change == "constants":
        variant = Variant("a.cu", "scale", (("N", 5),))
    elif change == "architecture":
        architecture = "sm_90a"
    else:
        path = compiler.sources / ("a.cu" if change == "source" else "factor.cuh")
        path.write_text(path.read_text() + "\n")

    assert compiler.digest(variant, architecture) != before


@pytest.mark.parametrize(
    ("architectures", "device", "chosen"),
    [
        (("sm_80",), "sm_90", "sm_90"),
        (("sm_80", "sm_90a"), "sm_90", "sm_90a"),
        (("sm_80", "sm_90a"), "sm_100", "sm_100"),
        (("sm_90a",), "sm_80", None),
        (("sm_80",), "sm_75", None),
    ],
)
def test_a_variant_says_what_to_compile_for(architectures: tuple[str, ...], device: str, chosen: str | None) -> None:
    assert Variant("a.cu", "scale", architectures=architectures).architecture_for(device) == chosen


@needs_nvcc
def test_code_is_compiled_once(compiler: Compiler) -> None:
    first = compiler.cubin(SCALE, "sm_80")
    (path,) = compiler.cache.glob("*/*.cubin")
    path.write_bytes(b"kept")

    assert first.startswith(b"\x7fELF")
    assert compiler.cubin(SCALE, "sm_80") == b"kept"


@needs_nvcc
def test_a_failed_compilation_leaves_nothing_behind(compiler: Compiler) -> None:
    (compiler.sources / "a.cu").write_text("not C++")

    with pytest.raises(DeviceError, match=r"a\.cu:scale does not compile for sm_80"):
        compiler.cubin(SCALE, "sm_80")
    assert not [path for path in compiler.cache.rglob("*") if path.is_file()]


@needs_nvcc
def test_two_processes_fill_one_cache(compiler: Compiler) -> None:
    code = (
        "import sys; from pathlib import Path; from lacuna_kernels.cuda.compiler import Compiler, Variant;"
        "Compiler(Path(sys.argv[1]), Path(sys.argv[2])).cubin(Variant('a.cu', 'scale'), 'sm_80')"
    )
    command = [sys.executable, "-c", code, str(compiler.cache), str(compiler.sources)]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": str(Path(str(compiler.nvcc)).parent) + ":/usr/bin:/bin"}

    running = [subprocess.Popen(command, env=environment) for _ in range(2)]

    assert [process.wait() for process in running] == [0, 0]
    assert sorted(path.suffix for path in compiler.cache.rglob("*") if path.is_file()) == [".cubin", ".txt"]


@needs_nvcc
def test_a_cache_that_cannot_be_written_is_said(compiler: Compiler) -> None:
    compiler.cache.write_text("a file where the folder should be")

    with pytest.raises(DeviceError, match=f"cannot be kept in {compiler.cache}"):
        compiler.cubin(SCALE, "sm_80")


@needs_nvcc
def test_a_filled_cache_needs_no_compiler(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compiler.cubin(SCALE, "sm_80")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    bare = Compiler(compiler.cache, compiler.sources)

    assert bare.nvcc is None
    assert bare.cubin(SCALE, "sm_80") == code
    with pytest.raises(DeviceError, match="there is no nvcc"):
        bare.cubin(SCALE, "sm_90")


@needs_nvcc
def test_the_check_finds_missing_functions_and_spills(compiler: Compiler, capsys: pytest.CaptureFixture[str]) -> None:
    spilling = 'extern "C" __global__ void __launch_bounds__(1024) scale(float* x) {\n float v[200];\n'
    spilling += "#pragma unroll\n for (int i = 0; i < 200; ++i) v[i] = x[i * 1024];\n __syncthreads();\n"
    spilling += "#pragma unroll\n for (int i = 0; i < 200; ++i) x[i] = v[i] * v[199 - i];\n}\n"
    (compiler.sources / "spill.cu").write_text(spilling)

    problems = check(compiler, (SCALE, Variant("a.cu", "other"), Variant("spill.cu", "scale")), False)

    assert ["no function other" in problems[0], "spills" in problems[1], len(problems)] == [True, True, 2]
    assert "registers" in capsys.readouterr().out
    assert check(compiler, (), False) == ["there is nothing to compile"]


def test_the_report_of_the_assembler_is_read() -> None:
    report = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_90a'
ptxas info    : Function properties for one
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 8 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compiling entry function 'two' for 'sm_90a'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
"""
    first, second = usages(report)

    assert (first.function, first.registers, first.shared_bytes, first.spill_bytes) == ("one", 168, 1024, 16)
    assert (second.function, second.registers, second.shared_bytes, second.spill_bytes) == ("two", 12, 0, 0)


def test_every_source_is_shipped_and_every_shipped_variant_has_a_source() -> None:
    assert {variant.source for variant in SHIPPED} == {path.name for path in SOURCES.glob("*.cu")}


def test_only_kernels_that_portable_ones_stand_beside_are_for_one_architecture() -> None:
    portable = {variant.function for variant in SHIPPED if "sm_80" in targets(variant, everything=False)}
    alone = {variant.function for variant in SHIPPED} - portable
    chosen_for_any_gpu = (*kronecker_linear.VARIANTS, *sparse_conv_choice.VARIANTS)  # see the tests of their choices

    assert alone <= {variant.function for variant in chosen_for_any_gpu}
