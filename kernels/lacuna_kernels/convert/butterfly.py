"""Butterfly of torch_butterfly: "Kaleidoscope: an efficient, learnable representation for all structured linear maps",
Dao et al., arXiv 2012.14966.

`twiddle` [nstacks, nblocks, log n, n/2, 2, 2]: each stack multiplies the same n inputs by nblocks * log n factors.
Their strides d are 1, 2, ..., n/2 in the first block (from n/2 down with increasing_stride=False, which no state dict
says) and turn round from block to block. A factor is n/2 blocks of 2 x 2 in the order of their first row: the pattern
(n/2d, 2, 2, d). Stacks stand beside each other, so a of all factors is nstacks times that, behind one factor
(1, nstacks, 1, n) of ones that repeats the inputs. Inputs are padded with zeros to n, and of nstacks * n outputs as
many are kept as the bias has.

`permutation` [n] of FixedPermutation is y[j] = x[permutation[j]].
"""

import torch
from torch import Tensor

from lacuna_kernels.convert.layers import Hints, Layer, Tensors, kronecker_layer, matches
from lacuna_kernels.errors import ConversionError


def owns(leaves: Tensors, *, told: bool) -> bool:
    """Whether a layer's tensors are those of Butterfly or FixedPermutation."""
    return set(leaves) - {"bias"} == {"twiddle"} or set(leaves) == {"permutation"}


def read(name: str, leaves: Tensors, hints: Hints) -> Layer:
    """The layer; raises ConversionError if the twiddle is complex or has another shape."""
    if "permutation" in leaves:
        return _permutation(name, leaves)
    twiddle = leaves["twiddle"].float()
    if twiddle.ndim != 6 or twiddle.shape[3:] != (2 ** (twiddle.shape[2] - 1), 2, 2):
        raise ConversionError(
            f"layer {name!r}: a real twiddle is [nstacks, nblocks, log n, n/2, 2, 2], got {list(twiddle.shape)}"
            + ("; complex and unitary ones cannot be served" if twiddle.shape[-1:] in [(2,), (4,)] else "")
        )
    stacks, half = twiddle.shape[0], twiddle.shape[3]
    n, factors = 2 * half, _factors(twiddle, ascending=not matches(name, hints.descending))
    if stacks > 1:
        factors.insert(0, torch.ones(1, stacks, 1, n))
    return kronecker_layer(name, factors, leaves, hints, narrowest=half + 1)


def _factors(twiddle: Tensor, *, ascending: bool) -> list[Tensor]:
    """The values of all factors, in order of application."""
    stacks, blocks, log_n, half = twiddle.shape[:4]
    factors = []
    for block in range(blocks):
        strides = [2**step for step in range(log_n)]
        for step, d in enumerate(strides if ascending == (block % 2 == 0) else strides[::-1]):
            values = twiddle[:, block, step].reshape(stacks * (half // d), d, 2, 2)
            factors.append(values.permute(0, 2, 3, 1).contiguous())
    return factors


def _permutation(name: str, leaves: Tensors) -> Layer:
    """A FixedPermutation, as a layer that has no op of its own; raises ConversionError if it is none."""
    indices: list[int] = leaves["permutation"].tolist()
    if leaves["permutation"].ndim != 1 or sorted(indices) != list(range(len(indices))):
        raise ConversionError(f"layer {name!r}: {list(leaves['permutation'].shape)} numbers are no permutation")
    width = len(indices)
    return Layer(name, "select_features", {}, {}, width, width, width, width, picked=indices)
