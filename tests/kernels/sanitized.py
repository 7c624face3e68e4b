"""A device that notes what ran on it: a script for compute-sanitizer fails if it left a shipped kernel out."""

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, Kernel
from lacuna_kernels.cuda.variants import SHIPPED


class Noted(Device):
    """A device that notes which kernels were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[Variant] = set()

    def kernel(self, variant: Variant) -> Kernel:
        self.asked.add(variant)
        return super().kernel(variant)


def left_out(sources: Collection[str], asked: Collection[Variant]) -> list[Variant]:
    """The shipped variants of these source files that were not asked for."""
    return [variant for variant in SHIPPED if variant.source in sources and variant not in asked]


@contextmanager
def every_variant_of(sources: Collection[str]) -> Iterator[Device]:
    """Lend a device; once the block is done, exit with the names if a shipped variant of `sources` did not run."""
    device = Noted()
    yield device
    torch.cuda.synchronize()
    device.close()
    if missed := left_out(sources, device.asked):
        raise SystemExit(f"did not run: {', '.join(map(str, missed))}")
    sys.stdout.write(f"{len(device.asked)} variants ran\n")
