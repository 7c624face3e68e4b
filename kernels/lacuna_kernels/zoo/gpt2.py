"""Blocks of GPT-2 on embedded tokens, dense or with Kronecker-sparse linear layers."""

from collections.abc import Collection

from lacuna_kernels.graph import Graph
from lacuna_kernels.zoo.draft import Draft
from lacuna_kernels.zoo.transformer import Block, Chains, Part

GPT2_MEDIUM_CHAINS = Chains(
    attention=[(32, 32, 32, 1), (1, 32, 32, 32)],
    up=[(1, 64, 64, 16), (16, 256, 64, 1)],
    down=[(64, 64, 64, 1), (1, 64, 256, 16)],
)
"""For 1024 features; those of the MLP from arXiv 2405.15013, up transposed, and Monarch's for the attention."""

NORM_EPS = 1e-5


def gpt2(
    *,
    kronecker: Collection[Part] = (),
    tokens: int = 1024,
    width: int = 1024,
    hidden: int = 4096,
    heads: int = 16,
    layers: int = 24,
    chains: Chains = GPT2_MEDIUM_CHAINS,
) -> Graph:
    """Causal transformer on embedded tokens [tokens, width], by default GPT-2-medium's 24 blocks; its output is states.

    kronecker  the parts of each block whose linear layers are chains of factors; by default none, a dense network
    """
    draft = Draft(embedded={"axis": "sequence", "dtype": "fp32", "shape": [tokens, width]})
    block = Block(width, hidden, heads, "gelu_tanh", causal=True, norm_eps=NORM_EPS, chains=chains, kronecker=kronecker)
    x = "embedded"
    for layer in range(1, layers + 1):
        x = block.add(draft, f"block{layer}", x)
    draft.add("states", "layer_norm", x, eps=NORM_EPS)
    return draft.graph(states={})
