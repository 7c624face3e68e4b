"""Factors of lazylinop's `ksm` and `ksd`: `ks_values` in the order of the product, so the last of them meets x first.

They are 4-D arrays [a, b, c, d] with our meaning, under names that users give them: a list (0, 1, ...), `ks_values.0`,
`factor0` (its own JSON), `arr_0` (numpy.savez), each alone or in an entry per layer, where a `bias` may stand beside.
"""

from lacuna_kernels.convert.layers import Hints, Layer, Tensors, kronecker_layer, numbered

STEMS = ("ks_values.", "factors.", "ks_values", "factor", "arr_", "")


def owns(leaves: Tensors, *, told: bool) -> bool:
    """Whether a layer's tensors are a list of 4-D factors; `factors.N` are KSLinear's unless told otherwise."""
    factors = numbered(leaves, STEMS if told else [stem for stem in STEMS if stem != "factors."])
    return factors is not None and all(factor.ndim == 4 for factor in factors)


def read(name: str, leaves: Tensors, hints: Hints) -> Layer:
    """The layer; raises ConversionError if the factors do not fit each other."""
    return kronecker_layer(name, (numbered(leaves, STEMS) or [])[::-1], leaves, hints)
