"""Which kind of layer some tensors of a checkpoint are."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from lacuna_kernels.convert import butterfly, ksmm, lazylinop, monarch, torch_layers
from lacuna_kernels.convert.layers import Hints, Layer, Tensors, grouped, matches, merged
from lacuna_kernels.errors import ConversionError


class Reader(Protocol):
    """A module for the layers of one package."""

    def owns(self, leaves: Tensors, *, told: bool) -> bool:
        """Whether a layer's tensors are of its kind; `told` says that they are if they can be."""

    def read(self, name: str, leaves: Tensors, hints: Hints) -> Layer:
        """The layer; raises ConversionError."""


READERS: Mapping[str, Reader] = {
    "ksmm": ksmm,
    "lazylinop": lazylinop,
    "monarch": monarch,
    "butterfly": butterfly,
    "torch": torch_layers,
}
SOURCES = ("ksmm", "lazylinop", "monarch")
"""Those that may have to be told from others."""
WHOLE = ("permutation", torch_layers.COUNTER)
"""The tensors that are whole numbers."""


class Layers(Mapping[str, Layer]):
    """The layers of a checkpoint by name, in the order of the file; each is read when it is first asked for.

    source  one of SOURCES: whose layers those are that more than one may have written. A list of factors is
            lazylinop's, and `factors.N` are ksmm's, unless told; a weight [k, q, p] is a Monarch factor only if told

    Raises ConversionError if hints name layers that are not there. Asking raises it with the keys of a layer that is of
    no known kind, or with the tensor that is no plain array of numbers.
    """

    def __init__(self, tensors: Tensors, hints: Hints, source: str | None = None) -> None:
        self._leaves, self._hints, self._source = grouped(tensors), hints, source
        self._known: dict[str, Layer] = {}
        unknown = [name for name in (*(hints.patterns.keys() - {""}), *hints.out_features) if name not in self]
        unknown += [text for text in (*hints.descending, *hints.shuffled) if not any(matches(n, [text]) for n in self)]
        if unknown:
            raise ConversionError(f"{unknown[0]!r} is no layer of the file ({', '.join(map(repr, self))})")

    def __getitem__(self, name: str) -> Layer:
        if name not in self._known:
            self._known[name] = merged(self._read(name), self._hints.largest)
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._leaves

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def _read(self, name: str) -> Layer:
        leaves, source = self._leaves[name], self._source
        for key in sorted(READERS, key=lambda key: key != source):  # the one that is told comes first
            if READERS[key].owns(leaves, told=key == source):
                for leaf, tensor in leaves.items():
                    if why := _unreadable(leaf, tensor, sparse=key == "ksmm"):
                        raise ConversionError(f"layer {name!r}: {leaf!r} {list(tensor.shape)} {why}")
                return READERS[key].read(name, leaves, self._hints)
        found = ", ".join(f"{leaf} {list(tensor.shape)}" for leaf, tensor in list(leaves.items())[:8])
        raise ConversionError(
            f"layer {name!r} is of no known kind: it has {found}. Known are factors.N (ksmm) and ks_values.N "
            "(lazylinop) with N from 0 on, blkdiag1 and blkdiag2, or weight [k, q, p] with --source monarch (fly), "
            "twiddle and permutation (torch_butterfly), and weight and bias of Linear, BatchNorm1d and LayerNorm"
        )


def _unreadable(leaf: str, tensor: Tensor, *, sparse: bool) -> str | None:
    """Why a tensor of a layer cannot be taken, if it cannot."""
    if tensor.is_complex():
        return "is complex; only real factors can be served"
    fp8 = tensor.is_floating_point() and tensor.element_size() == 1  # whose scales are elsewhere
    if fp8 or tensor.is_floating_point() == (leaf in WHOLE):
        floats = "fp16, bf16, fp32 or fp64; multiply quantised weights by their scales"
        return f"is {tensor.dtype}, not {'whole numbers' if leaf in WHOLE else floats}"
    if tensor.is_meta or not tensor.numel():
        return "has no numbers"
    if leaf == "bias" and tensor.ndim != 1 and tensor.shape[1:] != (1,):
        return "is no vector"
    if tensor.layout is not torch.strided:
        return None if sparse and leaf != "bias" else "is sparse"
    stored = tensor.untyped_storage().nbytes() // tensor.element_size()
    return f"repeats {stored} stored numbers" if tensor.numel() > stored else None
