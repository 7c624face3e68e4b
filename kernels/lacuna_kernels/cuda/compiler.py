"""Compiling kernels: content-addressed, into a cache folder that several processes may share."""

import hashlib
import os
import re
import runpy
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lacuna_kernels.errors import DeviceError

SOURCES = Path(__file__).parent / "src"
PORTABLE = "sm_80"
PTX = "compute_80"
"""What portable variants are kept as for GPUs that nothing was compiled for; the driver finishes it at load."""
_FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-Xptxas=-v")
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Variant:
    """What is compiled and loaded: pure data.

    source                a file in cuda/src
    function              its extern "C" name
    constants             -D NAME=VALUE; the source has a default for each
    architectures         "sm_80" is portable: compiled for whatever GPU is there; "sm_90a" is for Hopper alone
    dynamic_shared_bytes  shared memory of a launch beyond what the source declares
    cluster               blocks of a cluster, for a kernel that is launched by launch.py; None: by PyCUDA
    """

    source: str
    function: str
    constants: tuple[tuple[str, int | str], ...] = ()
    architectures: tuple[str, ...] = (PORTABLE,)
    dynamic_shared_bytes: int = 0
    cluster: int | None = None

    def architecture_for(self, device: str) -> str | None:
        """Return what to compile for on a device such as "sm_90", its own features if declared; None if it cannot."""
        if f"{device}a" in self.architectures:
            return f"{device}a"
        return device if PORTABLE in self.architectures and _number(device) >= _number(PORTABLE) else None

    def __str__(self) -> str:
        constants = " ".join(f"{name}={value}" for name, value in self.constants)
        return f"{self.source}:{self.function} {constants}".rstrip()


@dataclass(frozen=True, slots=True)
class Image:
    """A compiled source: machine code, and what the assembler said about registers and memory."""

    cubin: bytes
    report: str


class Compiler:
    """Turns variants into machine code and keeps it.

    A folder per content (source, the headers it includes, constants, architecture) holds a file per compiler version.
    Without nvcc whatever version is there is used, so that a host with a filled cache needs no compiler.
    """

    def __init__(self, cache: Path | None = None, sources: Path = SOURCES) -> None:
        self.cache = cache or default_cache()
        self.sources = sources

    @cached_property
    def nvcc(self) -> Path | None:
        """The compiler on PATH or in the usual place, or None."""
        found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
        return Path(found) if found else None

    @cached_property
    def version(self) -> str | None:
        """The compiler's version, such as "13.0.88"; None without one."""
        if self.nvcc is None:
            return None
        text = subprocess.run([self.nvcc, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603  our own nvcc
        match = re.search(r"V(\d+\.\d+\.\d+)", text)
        return match[1] if match else "unknown"

    def digest(self, variant: Variant, architecture: str) -> str:
        """Address of the content: equal for functions that share a source and its constants."""
        content = hashlib.sha256()
        for path in _with_headers(self.sources / variant.source):
            content.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
        for name, value in sorted(variant.constants):
            content.update(f"-D{name}={value}\n".encode())
        content.update(" ".join((architecture, *_FLAGS)).encode())
        return content.hexdigest()[:32]

    def cubin(self, variant: Variant, architecture: str) -> bytes:
        """Return machine code for an architecture such as "sm_90a", or else PTX; compiles at most once per content.

        Raises DeviceError if the source does not compile, or is not in the cache and there is no nvcc to compile it or
        no permission to keep it.
        """
        return self.image(variant, architecture).cubin

    def image(self, variant: Variant, architecture: str) -> Image:
        """As `cubin`, with the assembler's report."""
        folder = self.cache / self.digest(variant, architecture)
        path = folder / f"{self.version}{_suffix(architecture)}" if self.version else _newest(folder)
        if path is None and architecture != PTX and PORTABLE in variant.architectures:
            path = _newest(self.cache / self.digest(variant, PTX))
        if path is None:
            raise DeviceError(
                f"{variant} for {architecture} is not in {self.cache}, and there is no nvcc to compile it"
            )
        if not path.is_file():
            try:
                self._compile(variant, architecture, path)
            except OSError as error:
                raise DeviceError(f"{variant} for {architecture} cannot be kept in {self.cache}: {error}") from error
        return Image(path.read_bytes(), path.with_suffix(".txt").read_text())

    def images(self, wanted: Sequence[tuple[Variant, str]], workers: int | None = None) -> list[Image]:
        """Compile many (variant, architecture) side by side, each content once; in the order given."""
        first = {self.digest(*item): item for item in reversed(wanted)}
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            list(pool.map(lambda item: self.image(*item), first.values()))
        return [self.image(*item) for item in wanted]

    def _compile(self, variant: Variant, architecture: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            built = Path(scratch) / path.name
            constants = [f"-D{name}={value}" for name, value in variant.constants]
            target = f"-gencode=arch={architecture.replace('sm', 'compute')},code={architecture}"
            source = self.sources / variant.source
            run = subprocess.run(  # noqa: S603  our own nvcc and sources
                [str(self.nvcc), f"-{_suffix(architecture)[1:]}", *_FLAGS, target, *constants, "-o", built, source],
                capture_output=True,
                text=True,
                check=False,
            )
            if run.returncode:
                raise DeviceError(f"{variant} does not compile for {architecture}:\n{run.stderr or run.stdout}")
            report = built.with_suffix(".txt")
            report.write_text(run.stdout + run.stderr)
            report.replace(path.with_suffix(".txt"))  # first, so that whoever sees the code finds its report
            built.replace(path)


def default_cache() -> Path:
    """The folder `lacuna` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lacuna"


def _with_headers(path: Path) -> list[Path]:
    """The source and every header beside it that it includes, directly or not, in a fixed order."""
    found, todo = {path}, [path]
    while todo:
        for name in _INCLUDE.findall(todo.pop().read_text()):
            header = path.parent / name
            if header.is_file() and header not in found:
                found.add(header)
                todo.append(header)
    return sorted(found)


def _newest(folder: Path) -> Path | None:
    images = [*folder.glob("*.cubin"), *folder.glob("*.ptx")]
    return max(images, key=lambda path: path.stat().st_mtime, default=None)


def _suffix(architecture: str) -> str:
    return ".ptx" if architecture == PTX else ".cubin"


def _number(architecture: str) -> int:
    return int(re.sub(r"\D", "", architecture))


if __name__ == "__main__":
    runpy.run_module("lacuna_kernels.cuda.check", run_name="__main__")
