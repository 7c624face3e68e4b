"""A device that notes what ran on it, so that a shipped kernel that no script for compute-sanitizer runs is found."""

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, Kernel
from lacuna_kernels.cuda.variants import SHIPPED

RAN = "ran "
MULTIPROCESSORS = 16
"""So few that blocks take several tiles of small matrices, and use what they have in turns again."""


class Noted(Device):
    """A small device that notes which kernels were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = replace(self.limits, multiprocessors=MULTIPROCESSORS)
        self.asked: set[Variant] = set()

    def kernel(self, variant: Variant) -> Kernel:
        self.asked.add(variant)
        return super().kernel(variant)


@contextmanager
def noted() -> Iterator[Device]:
    """Lend a device; once the block is done, print the variants that were asked for, a line each."""
    device = Noted()
    yield device
    torch.cuda.synchronize()
    device.close()
    sys.stdout.writelines(f"{RAN}{variant}\n" for variant in device.asked)


def left_out(printed: Collection[str]) -> list[str]:
    """The shipped variants that none of these lines names."""
    ran = {line.removeprefix(RAN) for line in printed if line.startswith(RAN)}
    return [str(variant) for variant in SHIPPED if str(variant) not in ran]
