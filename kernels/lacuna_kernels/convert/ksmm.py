"""KSLinear of ksmm: the layers of "Fast inference with Kronecker-sparse matrices", Gonon, Zheng, Carrivain and Le,
arXiv 2405.15013.

Its state dict holds `factors.0`, `factors.1`, ..., the right-most factor first, which is the order of application, and
`bias` [out], or [out, 1] in a batch-size-last layer. How a factor is laid out follows from `algo`:

| algo | shape | what it holds |
|---|---|---|
| einsum | [a, b, c, d] | the values |
| bmm | [a*d, b, c] | block i*d + l |
| kernel | [a*d*c, b] | row (i*d + l)*c + k is column k of block i*d + l |
| bsr | [a*d*b, a*d*c], sparse | the blocks of bmm on the diagonal |
| dense, sparse | [a*b*d, a*c*d] | the matrix K itself |

Only the first says its pattern; for the others it must be told.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lacuna_kernels.convert.chains import on_pattern
from lacuna_kernels.convert.layers import Hints, Layer, Tensors, kronecker_layer, numbered
from lacuna_kernels.errors import ConversionError
from lacuna_kernels.ops.kronecker_linear import KSPattern

STEMS = ("factors.", "")
DENSE_LAYOUTS = ("values", "bmm", "kernel", "dense")
STORED = {torch.sparse_bsr: ("bsr",), torch.sparse_csr: ("dense",)}


def owns(leaves: Tensors, *, told: bool) -> bool:
    """Whether a layer's tensors are those of KSLinear; its factors may have lost their name if one is told so."""
    return numbered(leaves, STEMS if told else STEMS[:1]) is not None


def read(name: str, leaves: Tensors, hints: Hints) -> Layer:
    """The layer; raises ConversionError if its patterns are not known or do not fit."""
    factors = numbered(leaves, STEMS) or []
    chain = hints.chain(name) or [None] * len(factors)
    if len(chain) != len(factors):
        raise ConversionError(
            f"layer {name!r} has {len(factors)} factors, {len(chain)} patterns are given{_for_all(name, hints)}"
        )
    try:
        values = [_values(f, pattern, hints.layout) for f, pattern in zip(factors, chain, strict=True)]
    except ConversionError as error:
        raise ConversionError(f"layer {name!r}: {error}{_for_all(name, hints)}") from error
    return kronecker_layer(name, values, leaves, hints)


def _for_all(name: str, hints: Hints) -> str:
    """What may be amiss if a layer has the patterns that are for every layer."""
    shared = "" in hints.patterns and name not in hints.patterns
    return f"; these are given for every layer: give each its own, --patterns '{name}=a,b,c,d ...'" if shared else ""


def _values(factor: Tensor, pattern: KSPattern | None, layout: str | None) -> Tensor:
    """The values [a, b, c, d] of a factor in any layout."""
    if pattern is None:
        if factor.ndim != 4 or factor.layout is not torch.strided:
            raise ConversionError(
                f"a factor of shape {list(factor.shape)} does not say its pattern; give --patterns "
                "'a,b,c,d a,b,c,d ...', or 'LAYER=a,b,c,d ...' for each layer, the right-most factor first, as "
                "KSLinear got them"
            )
        pattern = KSPattern(*factor.shape)
    stored, shape = STORED.get(factor.layout, DENSE_LAYOUTS), tuple(factor.shape)
    layouts = {key: how for key, how in _layouts(pattern).items() if key in stored}
    fitting = [key for key, (wanted, _) in layouts.items() if shape == wanted and layout in (key, None)]
    if not fitting:
        wanted = ", ".join(f"{key} {list(wanted)}" for key, (wanted, _) in layouts.items())
        raise ConversionError(f"a factor of shape {list(shape)} is none of {pattern}, which would be {wanted}")
    if len(fitting) > 1:
        raise ConversionError(f"a factor of shape {list(shape)} may be {' or '.join(fitting)}; give --layout")
    return layouts[fitting[0]][1](factor.to_dense().float())


def _layouts(pattern: KSPattern) -> Mapping[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]]:
    """Shape of a factor in every layout, and how to get its values from it."""
    a, b, c, d = pattern.values
    blocks = KSPattern(a * d, b, c, 1)

    def from_blocks(factor: Tensor) -> Tensor:
        return factor.reshape(a, d, b, c).permute(0, 2, 3, 1)

    return {
        "values": ((a, b, c, d), lambda factor: factor),
        "bmm": ((a * d, b, c), from_blocks),
        "kernel": ((a * d * c, b), lambda factor: factor.reshape(a, d, c, b).permute(0, 3, 2, 1)),
        "bsr": ((a * d * b, a * d * c), lambda factor: from_blocks(_on_support(factor, blocks))),
        "dense": ((a * b * d, a * c * d), lambda factor: _on_support(factor, pattern)),
    }


def _on_support(matrix: Tensor, pattern: KSPattern) -> Tensor:
    """The values of a matrix that must be zero outside of the pattern's support."""
    values = on_pattern(matrix, pattern)
    if matrix.count_nonzero() != values.count_nonzero():
        raise ConversionError(
            f"a dense factor has non-zeros beside the support of {pattern}; KSLinear(algo='dense') trains the whole "
            "matrix unless it was given weights, and that is no Kronecker-sparse factor"
        )
    return values
