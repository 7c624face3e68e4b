"""compute-sanitizer on scripts that run the smallest shape of every kernel variant."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest
import torch

from lacuna_kernels.cuda.variants import SHIPPED
from tests.kernels import sanitize_dense, sanitize_kronecker, sanitize_sparse
from tests.kernels.sanitized import RAN, left_out

SCRIPTS: list[tuple[ModuleType, list[str]]] = [
    (sanitize_sparse, []),
    (sanitize_dense, []),
    *((sanitize_kronecker, [str(part)]) for part in range(sanitize_kronecker.PARTS)),
]
"""With their arguments."""
WHOLE_ALLOCATIONS = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""So that a step past a tensor is a step past memory."""


def test_every_shipped_source_is_on_the_list_of_one_script() -> None:
    covered = [source for script in {script for script, _ in SCRIPTS} for source in script.SOURCES]
    assert sorted(covered) == sorted({kernel.source for kernel in SHIPPED})


def test_a_variant_that_did_not_run_is_told() -> None:
    lines = [f"{RAN}{kernel}" for kernel in SHIPPED]

    assert left_out(lines) == []
    assert left_out(lines[1:]) == [str(SHIPPED[0])]


@pytest.mark.sanitize
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_the_sanitizer_finds_nothing(tool: str) -> None:
    if shutil.which("compute-sanitizer") is None or not torch.cuda.is_available():
        pytest.skip("no compute-sanitizer on PATH, or no CUDA device")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | WHOLE_ALLOCATIONS

    def run(script: tuple[ModuleType, list[str]]) -> "subprocess.CompletedProcess[str]":
        module, arguments = script
        program = [sys.executable, str(module.__file__), *arguments]
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *program]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = list(pool.map(run, SCRIPTS))

    failed = [
        f"{script.__name__} {arguments}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        for (script, arguments), done in zip(SCRIPTS, runs, strict=True)
        if done.returncode
    ]
    assert not failed, "\n".join(failed)
    assert left_out([line for done in runs for line in done.stdout.splitlines()]) == []
