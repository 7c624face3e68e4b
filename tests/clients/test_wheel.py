"""What an installed wheel holds: everything that the packages read or name at run time."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]


def built(project: Path, folder: Path) -> ZipFile:
    """Build a project's wheel with what is installed here, and open it."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    run = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(project)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = folder.glob("*.whl")
    return ZipFile(wheel)


def console_script(wheel: ZipFile) -> str:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    return wheel.read(name).decode()


def sources(folder: Path, package: str) -> set[str]:
    """Every file of a package in the tree, as a wheel names it; caches are none of it."""
    return {
        path.relative_to(folder).as_posix()
        for path in (folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_client_wheel_holds_the_package_and_its_command(tmp_path: Path) -> None:
    project = ROOT / "clients" / "python"

    with built(project, tmp_path) as wheel:
        held, scripts = set(wheel.namelist()), console_script(wheel)

    assert {"lacuna_client/__init__.py", "lacuna_client/py.typed"} <= held
    assert sources(project, "lacuna_client") <= held
    assert {name.split("/")[0].split("-")[0] for name in held} == {"lacuna_client"}
    assert "lacuna-client = lacuna_client.cli:main" in scripts


def test_the_root_wheel_holds_kernels_schema_types_and_the_command(tmp_path: Path) -> None:
    with built(ROOT, tmp_path) as wheel:
        held, scripts = set(wheel.namelist()), console_script(wheel)

    kernels = sources(ROOT / "kernels", "lacuna_kernels")
    assert {"lacuna_kernels/cuda/src/scan.cu", "lacuna_kernels/cuda/src/scan.cuh"} <= held
    assert {"lacuna_kernels/graph.schema.json", "lacuna_kernels/py.typed", "lacuna_service/py.typed"} <= held
    assert kernels | sources(ROOT / "service", "lacuna_service") <= held
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == {"lacuna_kernels", "lacuna_service"}
    assert "lacuna = lacuna_service.__main__:main" in scripts
