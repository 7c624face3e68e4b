"""Buffers of a plan in one piece of memory: those that are never alive together share their place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class BufferSpec:
    """A tensor to be placed.

    padding  elements after each row of a matrix
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    padding: int = 0

    @property
    def bytes(self) -> int:
        """Size rounded up to the alignment."""
        size = prod(self.padded) * self.dtype.itemsize
        return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT

    @property
    def padded(self) -> tuple[int, ...]:
        """The shape with the padding."""
        return (*self.shape[:-1], self.shape[-1] + self.padding)


@dataclass(frozen=True, slots=True)
class Use:
    """What one step reads, and what it writes: new buffers, alive until the last step that reads them."""

    reads: Sequence[str]
    writes: Mapping[str, BufferSpec] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where every buffer lies: bytes from the start, and bytes in all."""

    offsets: Mapping[str, int]
    bytes: int


def lifetimes(uses: Sequence[Use]) -> dict[str, tuple[int, int]]:
    """First and last step of every buffer."""
    spans: dict[str, tuple[int, int]] = {}
    for step, use in enumerate(uses):
        spans.update(dict.fromkeys(use.writes, (step, step)))
        spans.update({name: (spans[name][0], step) for name in use.reads if name in spans})
    return spans


def arrange(uses: Sequence[Use]) -> Layout:
    """Place the largest buffers first, each at the lowest place where no buffer alive at the same time lies."""
    spans = lifetimes(uses)
    specs = {name: spec for use in uses for name, spec in use.writes.items()}
    placed: list[tuple[int, int, tuple[int, int]]] = []
    offsets: dict[str, int] = {}
    for name in sorted(specs, key=lambda name: -specs[name].bytes):
        size, span = specs[name].bytes, spans[name]
        start = _lowest_gap(size, [(low, high) for low, high, other in placed if _overlap(span, other)])
        offsets[name] = start
        placed.append((start, start + size, span))
    return Layout(offsets, max((high for _, high, _ in placed), default=0))


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def _lowest_gap(size: int, taken: list[tuple[int, int]]) -> int:
    start = 0
    for low, high in sorted(taken):
        if start + size <= low:
            break
        start = max(start, high)
    return start


def views(layout: Layout, uses: Sequence[Use], memory: Tensor) -> dict[str, Tensor]:
    """Cut the memory, uint8 [layout.bytes], into tensors."""
    specs = {name: spec for use in uses for name, spec in use.writes.items()}
    return {name: _view(memory, layout.offsets[name], spec) for name, spec in specs.items()}


def _view(memory: Tensor, start: int, spec: BufferSpec) -> Tensor:
    size = prod(spec.padded) * spec.dtype.itemsize
    return memory[start : start + size].view(spec.dtype).view(spec.padded)[..., : spec.shape[-1]]
