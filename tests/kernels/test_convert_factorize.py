"""Dense matrices become chains: exact where they can be, best where two factors are asked for, as lazylinop's else."""

from itertools import pairwise
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacuna_kernels import ConversionError
from lacuna_kernels.convert.chains import (
    Chain,
    balanced,
    chain_of_blocks,
    chain_text,
    inner_rank,
    matrix_of,
    merge,
    monarch,
    multiply,
    on_pattern,
    parse_chain,
    product_pattern,
    square_dyadic,
)
from lacuna_kernels.convert.factorize import factorize
from lacuna_kernels.ops.kronecker_linear import KSPattern

CHAINS = [
    balanced(64, 64),
    balanced(48, 36),
    balanced(10, 64),
    balanced(7, 30),
    balanced(48, 36, rank=3),
    monarch(64, 128, blocks=4, rank=8),
    square_dyadic(32, 32),
    square_dyadic(16, 16, rank=2),
    balanced(60, 90, 3, rank=2),
    chain_of_blocks((5, 1, 6), (1, 4, 3)),
    parse_chain("6,2,3,1 2,5,6,1 1,3,2,5"),
    parse_chain("2,3,4,1 2,5,3,1"),  # block-diagonal as a whole
    parse_chain("2,2,3,3 1,4,4,3"),  # strided as a whole
    parse_chain("1,8,4,1 1,4,8,1"),  # redundant: the inner width is larger than the outer ones
    parse_chain("6,2,3,2"),
]


def random_factors(chain: Chain, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(pattern.values, generator=generator, dtype=torch.float64) for pattern in chain]


def random_matrix(chain: Chain, seed: int = 0) -> Tensor:
    shape = (chain[-1].width_out, chain[0].width_in)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(missed: Tensor, matrix: Tensor) -> float:
    return float(missed.norm() / matrix.norm())


def support(pattern: KSPattern) -> Tensor:
    """kron(I_a, ones(b, c), I_d), as the paper defines it."""
    return torch.kron(torch.kron(torch.eye(pattern.a), torch.ones(pattern.b, pattern.c)), torch.eye(pattern.d))


def tail_of_the_best_two_factors(matrix: Tensor, right: KSPattern, left: KSPattern) -> float:
    """Squared error of the best product, from the supports alone.

    Inner features whose column of the left and row of the right support are the same add up to one block of the
    matrix, of as many ranks; blocks do not overlap; what lies in none is lost.
    """
    columns, rows = support(left).bool(), support(right).bool()
    blocks: dict[tuple[bytes, bytes], list[int]] = {}
    for inner in range(left.width_in):
        key = (columns[:, inner].numpy().tobytes(), rows[inner].numpy().tobytes())
        blocks.setdefault(key, []).append(inner)
    outside, missed = matrix.clone(), 0.0
    for inner in blocks.values():
        place = torch.meshgrid(columns[:, inner[0]].nonzero()[:, 0], rows[inner[0]].nonzero()[:, 0], indexing="ij")
        missed += float(np.square(np.linalg.svd(matrix[place].numpy(), compute_uv=False)[len(inner) :]).sum())
        outside[place] = 0
    return missed + float(outside.square().sum())


@pytest.mark.parametrize("chain", CHAINS, ids=chain_text)
def test_a_product_of_a_chain_is_recovered(chain):
    matrix = matrix_of(random_factors(chain))

    factors = factorize(matrix, chain)

    assert [tuple(factor.shape) for factor in factors] == [pattern.values for pattern in chain]
    assert relative(matrix_of(factors) - matrix, matrix) < 1e-10


@pytest.mark.parametrize("chain", [chain for chain in CHAINS if len(chain) == 2], ids=chain_text)
def test_two_factors_miss_what_the_singular_values_of_the_blocks_leave(chain):
    matrix = random_matrix(chain)

    missed = matrix_of(factorize(matrix, chain)) - matrix

    assert float(missed.square().sum()) == pytest.approx(tail_of_the_best_two_factors(matrix, *chain), abs=1e-9)


@pytest.mark.parametrize("chain", [chain for chain in CHAINS if len(chain) > 2], ids=chain_text)
def test_more_factors_miss_no_more_than_the_best_splits_into_two_together(chain):
    matrix = random_matrix(chain)

    missed = float((matrix_of(factorize(matrix, chain)) - matrix).square().sum())

    splits = [
        tail_of_the_best_two_factors(matrix, product_pattern(chain[:place]), product_pattern(chain[place:]))
        for place in range(1, len(chain))
    ]
    assert max(splits) - 1e-9 <= missed <= sum(splits) + 1e-9


def test_the_errors_are_those_of_lazylinops_ksd(butterfly):
    theirs = [
        butterfly.Chain.monarch((21, 16)),
        butterfly.Chain.monarch((64, 64)),
        butterfly.Chain.square_dyadic((32, 32)),
        butterfly.Chain.chainable((24, 60)),
        butterfly.Chain([pattern.values for pattern in balanced(60, 90, 3, rank=2)[::-1]]),
    ]
    for chain in theirs:
        assert chain.chainability
        ours = tuple(KSPattern(*pattern) for pattern in chain.ks_patterns[::-1])
        matrix = random_matrix(ours, seed=3)

        found = matrix_of(factorize(matrix, ours))

        expected = butterfly.ksd(matrix.numpy(), chain).toarray()
        assert relative(matrix - found, matrix) == pytest.approx(
            np.linalg.norm(matrix.numpy() - expected) / np.linalg.norm(matrix.numpy()), rel=1e-9
        )
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


def test_factors_of_lazylinop_make_the_matrix_that_it_made_of_them(butterfly):
    chain = butterfly.Chain.chainable((24, 60))
    rng = np.random.default_rng(0)
    values = [rng.normal(size=pattern) for pattern in chain.ks_patterns]

    found = matrix_of([torch.from_numpy(factor) for factor in values[::-1]])

    np.testing.assert_allclose(found.numpy(), butterfly.ksm(values).toarray(), atol=1e-12)


def test_zeros_stay_zeros():
    chain = balanced(12, 18, 3)

    factors = factorize(torch.zeros(12, 18, dtype=torch.float64), chain)

    assert not matrix_of(factors).any()
    assert all(bool(torch.isfinite(factor).all()) for factor in factors)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("4,2,2,1 4,3,2,2", "widths between them must be equal"),
        ("1,2,2,4 2,2,2,2 4,2,2,1", "not chainable"),  # lazylinop's order
        ("2,3,1,1 1,1,3,2", "not chainable"),  # half a rank
        ("4,4,2,1 1,2,4,4", "the chain is 8 x 8, the matrix 6 x 8"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(chain, message):
    with pytest.raises(ConversionError, match=message):
        factorize(torch.ones(6, 8, dtype=torch.float64), parse_chain(chain))


@pytest.mark.parametrize("text", ["1,2,3", "a", "1,2,3,x", "0,1,1,1", "1,2,3,4,5"])
def test_what_is_no_chain_is_refused(text):
    with pytest.raises(ConversionError, match="is no chain"):
        parse_chain(text)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(2, 5), st.integers(1, 7))
def test_every_pair_of_widths_has_a_balanced_chain_of_that_rank(width_out, width_in, count, rank):
    chain = balanced(width_out, width_in, count, rank)

    assert len(chain) == count
    assert (chain[-1].width_out, chain[0].width_in) == (width_out, width_in)
    assert [inner_rank(*pair) for pair in pairwise(chain)] == [rank] * (count - 1)
    assert product_pattern(chain).values == (1, width_out, width_in, 1)


def test_known_chains_are_those_of_their_papers():
    assert chain_text(square_dyadic(8, 8)) == "4,2,2,1 2,2,2,2 1,2,2,4"
    assert chain_text(balanced(4096, 4096)) == "64,64,64,1 1,64,64,64"
    assert chain_text(monarch(1024, 1024, blocks=4, rank=64)) == "4,256,256,1 1,256,256,4"  # MonarchLinear(nblocks=4)
    assert parse_chain(chain_text(CHAINS[-2])) == CHAINS[-2]


@pytest.mark.parametrize(
    ("build", "shape"), [(square_dyadic, (8, 16)), (square_dyadic, (12, 12)), (square_dyadic, (1, 1))]
)
def test_a_square_dyadic_chain_needs_a_square_power_of_two(build, shape):
    with pytest.raises(ConversionError, match="is not square of a power of two"):
        build(*shape)


def test_blocks_that_do_not_divide_are_refused():
    with pytest.raises(ConversionError, match="16 blocks do not divide 1000 x 64"):
        monarch(1000, 64, blocks=16)


@pytest.mark.parametrize("chain", CHAINS, ids=chain_text)
def test_a_product_on_its_pattern_is_the_product(chain):
    factors = random_factors(chain)

    values, pattern = multiply(factors), product_pattern(chain)

    assert tuple(values.shape) == pattern.values
    torch.testing.assert_close(matrix_of([values]), matrix_of(factors))
    assert not (matrix_of(factors)[support(pattern) == 0]).any()


@pytest.mark.parametrize("pattern", [(1, 1, 1, 1), (3, 2, 5, 4), (1, 6, 2, 3), (4, 3, 3, 1)], ids=str)
def test_the_values_of_a_matrix_on_a_pattern_are_those_it_was_made_of(pattern):
    values = torch.randn(pattern)

    assert torch.equal(on_pattern(matrix_of([values]), KSPattern(*pattern)), values)


@pytest.mark.parametrize(("largest", "patterns"), [(2, 6), (8, 2), (16, 2), (64, 1), (1, 6)])
@pytest.mark.parametrize("turned", [False, True])
def test_merging_keeps_the_product_and_the_size_of_the_blocks(largest, patterns, turned):
    factors = random_factors(square_dyadic(64, 64))
    factors = factors[::-1] if turned else factors  # from large strides to small ones

    merged = merge(factors, largest)

    assert len(merged) == patterns
    assert all(max(factor.shape[1:3]) <= max(largest, 2) for factor in merged)
    torch.testing.assert_close(matrix_of(merged), matrix_of(factors))


def test_a_monarch_matrix_has_far_fewer_parameters():
    assert sum(prod(pattern.values) for pattern in balanced(4096, 4096)) == 2 * 64**3
