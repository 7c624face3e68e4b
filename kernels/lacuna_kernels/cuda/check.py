"""Compile the shipped kernels without a GPU and read registers, shared memory and spills from the assembler.

python -m lacuna_kernels.cuda.compiler --check [--all]
"""

import argparse
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lacuna_kernels.cuda.compiler import PORTABLE, Compiler, Variant
from lacuna_kernels.cuda.variants import SHIPPED
from lacuna_kernels.errors import DeviceError

GPUS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
"""What --all compiles the portable kernels for."""

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one function takes: registers a thread, static shared memory a block, bytes spilled a thread."""

    function: str
    registers: int
    shared_bytes: int
    spill_bytes: int


def usages(report: str) -> Iterator[Usage]:
    """Read the assembler's verbose report, function by function."""
    for name, text in zip(_ENTRY.findall(report), _ENTRY.split(report)[2::2], strict=True):
        spill, used, shared = _SPILL.search(text), _USED.search(text), _SHARED.search(text)
        yield Usage(
            name,
            int(used[1]) if used else 0,
            int(shared[1]) if shared else 0,
            int(spill[2]) + int(spill[3]) if spill else 0,
        )


def targets(variant: Variant, everything: bool) -> list[str]:
    """Architectures to compile a variant for: those it names, or every GPU that a portable one runs on."""
    own = [name for name in variant.architectures if name != PORTABLE]
    portable = (GPUS if everything else (PORTABLE,)) if PORTABLE in variant.architectures else ()
    return [*portable, *own]


def check(compiler: Compiler, variants: tuple[Variant, ...], everything: bool) -> list[str]:
    """Compile, print a table, and return what is wrong: spills, functions that are missing, nothing compiled."""
    wanted = [(variant, target) for variant in variants for target in targets(variant, everything)]
    problems = [] if wanted else ["there is nothing to compile"]
    for (variant, target), image in zip(wanted, compiler.images(wanted), strict=True):
        found = {usage.function: usage for usage in usages(image.report)}
        usage = found.get(variant.function)
        if usage is None:
            problems.append(f"{variant} for {target}: the source has no function {variant.function}")
            continue
        shared = usage.shared_bytes + variant.dynamic_shared_bytes
        _say(f"{target:7} {usage.registers:4} registers {shared:7} B shared {usage.spill_bytes:4} B spilled  {variant}")
        if usage.spill_bytes:
            problems.append(f"{variant} for {target} spills {usage.spill_bytes} bytes")
    return problems


def main() -> int:
    """Return 0 if all is well or there is no nvcc, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compile and check (the only thing there is to do)")
    parser.add_argument("--all", action="store_true", help=f"for every GPU: {', '.join(GPUS)}")
    parser.add_argument("--cache", type=Path, default=None, help="cache folder (default: lacuna in the user's)")
    options = parser.parse_args()
    compiler = Compiler(options.cache)
    if compiler.nvcc is None:
        _say("no nvcc on this machine: no kernel was compiled or checked")
        return 0
    start = time.perf_counter()
    try:
        problems = check(compiler, SHIPPED, options.all)
    except DeviceError as error:
        problems = [str(error)]
    for problem in problems:
        _say(f"WRONG: {problem}")
    seconds = time.perf_counter() - start
    _say(f"nvcc {compiler.version}: {len(SHIPPED)} variants, {seconds:.0f} s, {len(problems)} problems")
    return 1 if problems else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
