"""compute-sanitizer on scripts that run the smallest shape of every kernel variant."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from types import ModuleType

import pytest
import torch

from lacuna_kernels.cuda.variants import SHIPPED
from tests.kernels import sanitize_dense, sanitize_kronecker, sanitize_sparse
from tests.kernels.sanitized import RAN, left_out

TOOLS = ("racecheck", "initcheck", "memcheck")
"""From the slowest to the fastest."""
SCRIPTS: list[tuple[ModuleType, list[str]]] = [
    (sanitize_sparse, []),
    (sanitize_dense, []),
    *((sanitize_kronecker, [str(part)]) for part in range(sanitize_kronecker.PARTS)),
]
"""With their arguments."""
MOST_LINES = 40
"""Of what a run printed."""
WHOLE_ALLOCATIONS = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""So that a step past a tensor is a step past memory."""


def test_every_shipped_source_is_on_the_list_of_one_script() -> None:
    covered = [source for script in {script for script, _ in SCRIPTS} for source in script.SOURCES]
    assert sorted(covered) == sorted({kernel.source for kernel in SHIPPED})


def test_a_variant_that_did_not_run_is_told() -> None:
    lines = [f"{RAN}{kernel}" for kernel in SHIPPED]

    assert left_out(lines) == []
    assert left_out(lines[1:]) == [str(SHIPPED[0])]


def told(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """What a tool says, and errors, without the variants that ran."""
    lines = [line for line in done.stdout.splitlines() if not line.startswith(RAN)]
    return lines[:MOST_LINES] + done.stderr.splitlines()[-MOST_LINES:]


@pytest.mark.sanitize
def test_the_sanitizers_find_nothing() -> None:
    if shutil.which("compute-sanitizer") is None or not torch.cuda.is_available():
        pytest.skip("no compute-sanitizer on PATH, or no CUDA device")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | WHOLE_ALLOCATIONS

    def run(job: tuple[str, tuple[ModuleType, list[str]]]) -> "subprocess.CompletedProcess[str]":
        tool, (module, arguments) = job
        program = [sys.executable, str(module.__file__), *arguments]
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *program]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = list(pool.map(run, product(TOOLS, SCRIPTS)))

    failed = ["\n".join([" ".join(done.args), *told(done)]) for done in runs if done.returncode]
    assert not failed, "\n".join(failed)
    for tool in TOOLS:
        printed = [line for done in runs if tool in done.args for line in done.stdout.splitlines()]
        assert left_out(printed) == [], tool
