"""Which kind of layer some tensors of a checkpoint are."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Protocol

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


class Layers(Mapping[str, Layer]):
    """The layers of a checkpoint by name, in the order of the file; each is read when it is asked for.

    source  one of SOURCES: whose layers those are that more than one may have written. A list of factors is
            lazylinop's, and `factors.N` are ksmm's, unless told; a weight [k, q, p] is a Monarch factor only if told

    Asking raises ConversionError with the keys of a layer that is of no known kind.
    """

    def __init__(self, tensors: Tensors, hints: Hints, source: str | None = None) -> None:
        self._leaves, self._hints, self._source = grouped(tensors), hints, source

    def __getitem__(self, name: str) -> Layer:
        hints = self._hints
        layer = merged(_read(name, self._leaves[name], hints, self._source), hints.largest)
        return replace(layer, picked=monarch.shuffle(layer)) if matches(name, hints.shuffled) else layer

    def __contains__(self, name: object) -> bool:
        return name in self._leaves

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)


def _read(name: str, leaves: Tensors, hints: Hints, source: str | None) -> Layer:
    for key in sorted(READERS, key=lambda key: key != source):  # the one that is told comes first
        if READERS[key].owns(leaves, told=key == source):
            return READERS[key].read(name, leaves, hints)
    found = ", ".join(f"{leaf} {list(tensor.shape)}" for leaf, tensor in list(leaves.items())[:8])
    raise ConversionError(
        f"layer {name!r} is of no known kind: it has {found}. Known are "
        "factors.N (ksmm), ks_values.N (lazylinop), blkdiag1 and blkdiag2, or weight [k, q, p] with --source monarch "
        "(fly), twiddle and permutation (torch_butterfly), and weight and bias of Linear, BatchNorm1d and LayerNorm"
    )
