"""Compile the shipped kernels ahead of time, so that a host without a compiler needs none.

python -m lacuna_kernels.cuda.fill --cache FOLDER [--gpus sm_90 ... compute_80]
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lacuna_kernels.cuda.check import GPUS
from lacuna_kernels.cuda.compiler import PORTABLE, PTX, Compiler, Variant
from lacuna_kernels.cuda.variants import SHIPPED
from lacuna_kernels.errors import DeviceError


def wanted(variants: Sequence[Variant], gpus: Sequence[str]) -> list[tuple[Variant, str]]:
    """What devices such as "sm_90" will ask the cache for: each variant that is for them, with its architecture.

    "compute_80" stands for every other GPU: the PTX of the portable variants.
    """
    pairs = ((variant, _architecture(variant, gpu)) for gpu in gpus for variant in variants)
    return [(variant, architecture) for variant, architecture in pairs if architecture is not None]


def _architecture(variant: Variant, gpu: str) -> str | None:
    if gpu == PTX:
        return PTX if PORTABLE in variant.architectures else None
    return variant.architecture_for(gpu)


def fill(compiler: Compiler, variants: Sequence[Variant], gpus: Sequence[str]) -> int:
    """Compile into the compiler's cache; returns how many images were asked for. Raises DeviceError."""
    asked = wanted(variants, gpus)
    if compiler.nvcc is None:
        raise DeviceError("there is no nvcc to fill the cache with")
    if not asked:
        raise DeviceError(f"no kernel is for {', '.join(gpus) or 'no GPU'}")
    return len(compiler.images(asked))


def main() -> int:
    """Return 0 if every kernel is in the cache now, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--cache", type=Path, help="cache folder (default: lacuna in the user's)")
    parser.add_argument(
        "--gpus", nargs="+", default=(*GPUS, PTX), metavar="sm_NN", help=f"default: {' '.join((*GPUS, PTX))}"
    )
    options = parser.parse_args()
    compiler, start = Compiler(options.cache), time.perf_counter()
    try:
        count = fill(compiler, SHIPPED, options.gpus)
    except DeviceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{count} kernels in {compiler.cache}, {time.perf_counter() - start:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
