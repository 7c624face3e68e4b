"""Factors of lazylinop's `ksm` and `ksd`: `ks_values` in the order of the product, so the last of them meets x first.

They are 4-D arrays [a, b, c, d] with our meaning, under names that users give them: a list (0, 1, ...), `ks_values.0`,
`factor0` (its own JSON), `arr_0` (numpy.savez), each alone or in an entry per layer, where a `bias` may stand beside.
"""

from lacuna_kernels.convert.layers import Hints, Layer, Tensors, bias_of, kronecker_layer, numbered

STEMS = ("ks_values.", "factors.", "ks_values", "factor", "arr_", "")


def owns(leaves: Tensors, *, told: bool) -> bool:
    """Whether a layer's tensors are a list of 4-D factors; `factors.N` are KSLinear's unless told otherwise."""
    values = [leaf for leaf in leaves if leaf != "bias"]
    if not all(leaf[-1].isdigit() and leaves[leaf].ndim == 4 for leaf in values):
        return False
    return bool(values) and (told or not any(leaf.startswith("factors.") for leaf in values))


def read(name: str, leaves: Tensors, hints: Hints) -> Layer:
    """The layer; raises ConversionError if the factors do not fit each other."""
    factors = numbered({leaf: tensor for leaf, tensor in leaves.items() if leaf != "bias"}, *STEMS) or []
    return kronecker_layer(name, factors[::-1], bias_of(leaves))
