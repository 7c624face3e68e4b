"""MonarchLinear, BlockdiagButterflyMultiply and BlockdiagLinear of HazyResearch's fly: "Monarch: expressive structured
matrices for efficient and accurate training", Dao et al., arXiv 2204.00595.

`blkdiag1` [k, q, p] multiplies k blocks of p features, `blkdiag2` [l, s, r] multiplies l blocks of r: block i takes the
features i, i + l, i + 2l, ... of what came before and gives the outputs i, i + l, i + 2l, .... Those strides are the
permutations of a Monarch matrix, and a pattern says strides: the two factors are (k, q, p, 1) and (1, s, r, l), and no
permutation is left. Inputs are padded with zeros to k*p, and of l*s outputs as many are kept as the bias has.

`weight` [k, q, p] of BlockdiagLinear is one factor (k, q, p, 1). With shuffle=True, which its state dict does not say,
its inputs are shuffled across blocks first, and no pattern says that: a `select_features` node does.
"""

from dataclasses import replace

from lacuna_kernels.convert.layers import Hints, Layer, Tensors, kronecker_layer, matches
from lacuna_kernels.errors import ConversionError

NAMES = (("blkdiag1", "blkdiag2"), ("w1_bfly", "w2_bfly"))


def owns(leaves: Tensors, *, told: bool) -> bool:
    """Whether a layer's tensors are two block-diagonal ones; one alone may also be a convolution, unless told not."""
    names = set(leaves) - {"bias"}
    return names in map(set, NAMES) or (told and names == {"weight"} and leaves["weight"].ndim == 3)


def read(name: str, leaves: Tensors, hints: Hints) -> Layer:
    """The layer; raises ConversionError if the blocks do not fit each other."""
    if "weight" in leaves:
        (first,) = blocks = [leaves["weight"]]
    else:
        first, second = blocks = next([leaves[key] for key in pair] for pair in NAMES if set(pair) <= set(leaves))
    shapes = [list(block.shape) for block in blocks]
    if any(block.ndim != 3 for block in blocks):
        raise ConversionError(f"layer {name!r}: block-diagonal factors are [blocks, out, in], got {shapes}")
    factors = [first[..., None]]
    if len(blocks) == 2:
        if first.shape[0] * first.shape[1] != second.shape[0] * second.shape[2]:
            raise ConversionError(f"layer {name!r}: {shapes[0]} gives k*q features, {shapes[1]} takes l*r")
        factors.append(second.permute(1, 2, 0)[None])
    k, _, p = first.shape
    layer = kronecker_layer(name, factors, leaves, hints, narrowest=k * (p - 1) + 1)
    if len(blocks) == 1 and matches(name, hints.shuffled):  # (group, channel) becomes (channel, group)
        return replace(layer, picked=[group * p + channel for channel in range(p) for group in range(k)])
    return layer
