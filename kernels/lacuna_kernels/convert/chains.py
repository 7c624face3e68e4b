"""Chains of Kronecker-sparse patterns for matrices of any shape, and what their products are.

Chains stand in order of application: the first pattern meets x. With K = K_L ... K_1, neighbours are chainable if
a_(l+1) divides a_l, d_l divides d_(l+1), and the rank b_l d_l / d_(l+1) is whole: "Butterfly factorization with error
guarantees", Zheng, Le, Riccietti and Gribonval, arXiv 2411.04506 (whose chains stand the other way round).
"""

from collections.abc import Sequence
from math import gcd, log, prod

import torch
from torch import Tensor

from lacuna_kernels.errors import ConversionError
from lacuna_kernels.ops.kronecker_linear import KSPattern, ks_matmul

Chain = tuple[KSPattern, ...]


def parse_chain(text: str) -> Chain:
    """Read "a,b,c,d a,b,c,d ..."; raises ConversionError."""
    try:
        return tuple(KSPattern(*(int(entry) for entry in part.split(","))) for part in text.split())
    except (ValueError, TypeError) as error:
        raise ConversionError(f"{text!r} is no chain such as '64,64,64,1 1,64,256,16': {error}") from error


def chain_text(chain: Sequence[KSPattern]) -> str:
    """The chain as `parse_chain` reads it."""
    return " ".join(",".join(map(str, pattern.values)) for pattern in chain)


def inner_rank(before: KSPattern, after: KSPattern) -> int:
    """Rank of the blocks of a product of two factors; raises ConversionError if the two are not chainable."""
    fits = before.width_out == after.width_in and before.a % after.a == 0 and after.d % before.d == 0
    if not fits or (before.b * before.d) % after.d:
        raise ConversionError(
            f"{before} and then {after} are not chainable: the widths between them must be equal, and a of the "
            "second must divide a of the first, d of the first d of the second, and d of the second b*d of the first"
        )
    return before.b * before.d // after.d


def product_pattern(chain: Sequence[KSPattern]) -> KSPattern:
    """Pattern of the product of a chain whose widths fit."""
    first, last = chain[0], chain[-1]
    a, d = gcd(*(pattern.a for pattern in chain)), gcd(*(pattern.d for pattern in chain))
    return KSPattern(a, last.width_out // (a * d), first.width_in // (a * d), d)


def chain_of_blocks(ins: Sequence[int], outs: Sequence[int], rank: int = 1) -> Chain:
    """Chain of a dense prod(outs) x prod(ins) matrix, one factor per entry of both, with that rank between any two.

    Rank 1 gives factor l the block outs[l] x ins[l]: every chain of full support without redundancy is of this form.
    """
    last = len(ins) - 1
    return tuple(
        KSPattern(
            prod(ins[place + 1 :]),
            outs[place] * (rank if place < last else 1),
            ins[place] * (rank if place else 1),
            prod(outs[:place]),
        )
        for place in range(last + 1)
    )


def balanced(width_out: int, width_in: int, factors: int = 2, rank: int = 1) -> Chain:
    """Chain whose blocks are as equal as the divisors of the widths allow; two factors are a Monarch matrix."""
    return chain_of_blocks(_divisors(width_in, factors), _divisors(width_out, factors)[::-1], rank)


def monarch(width_out: int, width_in: int, blocks: int, rank: int = 1) -> Chain:
    """Two factors, the first with `blocks` diagonal blocks, the second the same between strides of `blocks`.

    MonarchLinear(nblocks=4) of the authors (Dao et al., arXiv 2204.00595) is, for 1024 x 1024, blocks 4 and rank 64.
    """
    if width_out % blocks or width_in % blocks:
        raise ConversionError(f"{blocks} blocks do not divide {width_out} x {width_in}")
    return chain_of_blocks((width_in // blocks, blocks), (blocks, width_out // blocks), rank)


def square_dyadic(width_out: int, width_in: int, rank: int = 1) -> Chain:
    """The butterfly of log2(n) factors with blocks of 2 x 2."""
    factors = width_in.bit_length() - 1
    if width_out != width_in or 2**factors != width_in or not factors:
        raise ConversionError(f"{width_out} x {width_in} is not square of a power of two")
    return chain_of_blocks((2,) * factors, (2,) * factors, rank)


def _divisors(width: int, parts: int) -> tuple[int, ...]:
    """A width as a product of numbers that are near each other; of two equally near, the larger stands first."""
    if parts == 1:
        return (width,)
    wanted = log(width) / parts
    whole = [size for size in range(1, width + 1) if width % size == 0]
    nearest = min(reversed(whole), key=lambda size: round(abs(log(size) - wanted), 9))
    return (nearest, *_divisors(width // nearest, parts - 1))


def on_pattern(matrix: Tensor, pattern: KSPattern) -> Tensor:
    """The values [a, b, c, d] of a matrix [a*b*d, a*c*d] on the support of a pattern; what lies beside it is lost."""
    a, b, c, d = pattern.values
    return matrix.reshape(a, b, d, a, c, d).diagonal(dim1=0, dim2=3).diagonal(dim1=1, dim2=3).permute(2, 0, 1, 3)


def multiply(factors: Sequence[Tensor]) -> Tensor:
    """The values of the product of a chain, on its `product_pattern`.

    Its blocks (i, l) do not see each other, so a basis of one block, put into all of them, shows every value.
    """
    a, b, c, d = product_pattern([KSPattern(*factor.shape) for factor in factors]).values
    basis = torch.eye(c, dtype=factors[0].dtype)[:, None, :, None].expand(c, a, c, d)
    return apply(factors, basis.reshape(c, a * c * d)).reshape(c, a, b, d).permute(1, 2, 0, 3)


def matrix_of(factors: Sequence[Tensor]) -> Tensor:
    """The product as a dense matrix [width_out, width_in]."""
    return apply(factors, torch.eye(KSPattern(*factors[0].shape).width_in, dtype=factors[0].dtype)).T


def apply(factors: Sequence[Tensor], x: Tensor) -> Tensor:
    """Multiply rows by the factors, in order."""
    for factor in factors:
        x = ks_matmul(x, factor)
    return x


def merge(factors: Sequence[Tensor], largest_block: int) -> list[Tensor]:
    """Multiply neighbours together from the first on, as long as the blocks stay within that many rows and columns."""
    merged = [factors[0]]
    for factor in factors[1:]:
        pattern = product_pattern([KSPattern(*merged[-1].shape), KSPattern(*factor.shape)])
        if max(pattern.b, pattern.c) <= largest_block:
            merged[-1] = multiply([merged[-1], factor])
        else:
            merged.append(factor)
    return merged
