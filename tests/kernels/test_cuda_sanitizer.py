"""compute-sanitizer on scripts that run the smallest shape of every kernel variant."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lacuna_kernels.cuda.variants import SHIPPED
from tests.kernels import sanitize_dense, sanitize_kronecker, sanitize_sparse
from tests.kernels.sanitized import left_out

SCRIPTS = sorted(Path(__file__).parent.glob("sanitize_*.py"))
WHOLE_ALLOCATIONS = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""So that a step past a tensor is a step past memory."""

COVERED = [script.SOURCES for script in (sanitize_dense, sanitize_kronecker, sanitize_sparse)]


def test_the_scripts_cover_every_shipped_source_once() -> None:
    assert sorted(source for sources in COVERED for source in sources) == sorted({kernel.source for kernel in SHIPPED})


@pytest.mark.parametrize("sources", COVERED, ids=["dense", "kronecker", "sparse"])
def test_a_variant_that_did_not_run_is_told(sources: set[str]) -> None:
    kernels = [kernel for kernel in SHIPPED if kernel.source in sources]

    assert left_out(sources, kernels) == []
    assert left_out(sources, kernels[1:]) == kernels[:1]


@pytest.mark.sanitize
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_sanitizer_finds_nothing(script: Path, tool: str) -> None:
    if shutil.which("compute-sanitizer") is None or not torch.cuda.is_available():
        pytest.skip("no compute-sanitizer on PATH, or no CUDA device")
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, str(script)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | WHOLE_ALLOCATIONS

    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert "variants ran" in run.stdout
