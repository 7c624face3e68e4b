"""Hierarchical factorisation of a dense matrix into a chain of Kronecker-sparse factors.

One factor after the other is split off by the singular value decompositions of the blocks of which the product of
two factors is made. Two factors: the best approximation there is (block-wise SVD: "Monarch", Dao et al., arXiv
2204.00595). More: a product of such a chain is recovered, and any other matrix is missed by at most sqrt(L - 1) times
the largest error of the best two-factor splits ("Butterfly factorization with error guarantees", Zheng, Le, Riccietti
and Gribonval, arXiv 2411.04506): what is split off has orthonormal columns in each block, so later errors add up as
the sides of right angles.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from lacuna_kernels.convert.chains import Chain, inner_rank, on_pattern, product_pattern
from lacuna_kernels.errors import ConversionError
from lacuna_kernels.ops.kronecker_linear import KSPattern


def factorize(matrix: Tensor, chain: Chain) -> list[Tensor]:
    """Return the values of the factors, in order of application, in the matrix's type (float64, to recover exactly).

    matrix  [width_out, width_in]

    Raises ConversionError if the chain is not chainable or has other widths.
    """
    check_chain(chain, *matrix.shape)
    rest = on_pattern(matrix, product_pattern(chain))
    split: list[Tensor] = []
    for last in range(len(chain) - 1, 0, -1):
        factor, rest = _split(rest, product_pattern(chain[:last]), chain[last])
        split.append(factor)
    return [rest, *reversed(split)]


def check_chain(chain: Sequence[KSPattern], width_out: int, width_in: int) -> None:
    """Raise ConversionError unless a chain is chainable and has these widths."""
    for before, after in pairwise(chain):
        inner_rank(before, after)
    found = (chain[-1].width_out, chain[0].width_in)
    if found != (width_out, width_in):
        raise ConversionError(f"the chain is {found[0]} x {found[1]}, the matrix {width_out} x {width_in}")


def _split(values: Tensor, right: KSPattern, left: KSPattern) -> tuple[Tensor, Tensor]:
    """The values of left and right, whose product is nearest to a matrix on the pattern of the product.

    The product's rows are (i, j, s, l) of left's a and b, left.d / right.d and right.d; its columns (i, t, k, l) of
    left's a, right.a / left.a and right's c and d. Each (i, t, s, l) is a block b x c, of the rank between the two.
    """
    rank = inner_rank(right, left)
    t, s = right.a // left.a, left.d // right.d
    blocks = values.reshape(left.a, left.b, s, t, right.c, right.d).permute(0, 3, 2, 5, 1, 4)
    u, sigma, vh = torch.linalg.svd(blocks, full_matrices=False)
    missing = max(0, rank - sigma.shape[-1])  # a redundant chain: the blocks have not got that rank
    u = functional.pad(u[..., :rank], (0, missing))
    vh = functional.pad((sigma[..., None] * vh)[..., :rank, :], (0, 0, 0, missing))
    return u.permute(0, 4, 1, 5, 2, 3).reshape(left.values), vh.permute(0, 1, 4, 2, 5, 3).reshape(right.values)
