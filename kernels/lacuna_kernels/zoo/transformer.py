"""The block that transformers are made of, with dense or Kronecker-sparse linear layers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from lacuna_kernels.zoo.draft import Draft

Pattern = tuple[int, int, int, int]


class Part(StrEnum):
    """The two halves of a block, each of which may have Kronecker-sparse linear layers."""

    ATTENTION = "attention"
    MLP = "mlp"


@dataclass(frozen=True, slots=True)
class Chains:
    """Patterns of the factors that stand for each linear layer, in order of application.

    attention  width -> width: of the queries, the keys, the values, and the output of the attention
    up, down   width -> hidden and hidden -> width: the MLP
    """

    attention: Sequence[Pattern]
    up: Sequence[Pattern]
    down: Sequence[Pattern]


@dataclass(frozen=True, slots=True)
class Block:
    """Attention and an MLP, each behind a layer norm and with x added to it.

    kronecker  the parts whose linear layers are chains of Kronecker-sparse factors; the others are dense
    """

    width: int
    hidden: int
    heads: int
    activation: str
    causal: bool
    norm_eps: float
    chains: Chains
    kronecker: Collection[Part]

    def add(self, draft: Draft, name: str, x: str) -> str:
        """Add the nodes of one block, named after it; returns the last."""
        y = draft.add(f"{name}_norm1", "layer_norm", x, eps=self.norm_eps)
        queries = self._queries(draft, name, y)
        y = draft.add(f"{name}_attention", "attention", *queries, heads=self.heads, causal=self.causal)
        y = self._linear(draft, f"{name}_project", y, Part.ATTENTION, self.width, self.chains.attention)
        x = draft.add(f"{name}_middle", "add", x, y)
        y = draft.add(f"{name}_norm2", "layer_norm", x, eps=self.norm_eps)
        y = self._linear(draft, f"{name}_up", y, Part.MLP, self.hidden, self.chains.up, self.activation)
        y = self._linear(draft, f"{name}_down", y, Part.MLP, self.width, self.chains.down)
        return draft.add(name, "add", x, y)

    def _queries(self, draft: Draft, name: str, x: str) -> Sequence[str]:
        """Queries, keys and values: side by side from one dense layer, or from a chain each."""
        if Part.ATTENTION not in self.kronecker:
            return [draft.add(f"{name}_qkv", "linear", x, out_features=3 * self.width)]
        patterns = self.chains.attention
        return [draft.add(f"{name}_{part}", "kronecker_linear", x, patterns=list(patterns)) for part in "qkv"]

    def _linear(
        self, draft: Draft, name: str, x: str, part: Part, width: int, chain: Sequence[Pattern], f: str | None = None
    ) -> str:
        if part in self.kronecker:
            return draft.add(name, "kronecker_linear", x, patterns=list(chain), activation=f)
        return draft.add(name, "linear", x, out_features=width, activation=f)
