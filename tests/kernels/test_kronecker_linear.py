"""The oracle of Kronecker-sparse layers, tested before it judges kernels: explicit matrices, lazylinop, gradients."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacuna_kernels import GraphError, Value, parse_graph, walk
from lacuna_kernels.ops.kronecker_linear import KSPattern, ks_matmul
from tests.kernels.networks import document, node

PATTERNS = [(1, 1, 1, 1), (3, 2, 5, 4), (1, 6, 2, 3), (4, 3, 3, 1), (2, 1, 7, 2), (1, 4, 4, 1), (5, 1, 1, 3)]
CHAINS = [
    [(2, 3, 4, 1), (1, 5, 6, 1)],
    [(4, 4, 4, 1), (1, 4, 4, 4)],
    [(4, 2, 2, 1), (2, 2, 2, 2), (1, 2, 2, 4)],
    [(6, 2, 3, 1), (2, 5, 6, 1), (1, 3, 2, 5)],
]
Pattern = tuple[int, int, int, int]


def explicit(values: Tensor) -> Tensor:
    """The matrix K, entry by entry as the definition places them."""
    a, b, c, d = values.shape
    matrix = values.new_zeros(a * b * d, a * c * d)
    for i, j, k, m in product(range(a), range(b), range(c), range(d)):
        matrix[i * b * d + j * d + m, i * c * d + k * d + m] = values[i, j, k, m]
    return matrix


def layer(patterns: list[Pattern], factors: list[Tensor], x: Tensor, bias: Tensor | None = None) -> Tensor:
    """A kronecker_linear node over rows."""
    spec = {"x": {"axis": "row", "shape": [x.shape[-1]]}}
    y = node("y", "kronecker_linear", "x", patterns=[list(p) for p in patterns], bias=bias is not None)
    weights = {f"y.factors.{index}": values for index, values in enumerate(factors)}
    if bias is not None:
        weights["y.bias"] = bias
    return walk(parse_graph(document(spec, [y], "y")), weights, {"x": Value(x)})["y"].data


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_support_is_the_kronecker_product(pattern):
    a, b, c, d = pattern
    identity = [torch.eye(size, dtype=torch.float64) for size in (a * c * d, a, d)]

    matrix = ks_matmul(identity[0], torch.ones(pattern, dtype=torch.float64)).T

    support = torch.kron(torch.kron(identity[1], torch.ones(b, c, dtype=torch.float64)), identity[2])
    assert torch.equal(matrix, support)


sizes = st.integers(1, 5)


@settings(deadline=None)
@given(sizes, sizes, sizes, sizes, st.integers(0, 4), st.integers(0, 2**31))
def test_a_factor_is_its_explicit_matrix(a, b, c, d, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(a, b, c, d, generator=generator, dtype=torch.float64)
    x = torch.randn(rows, a * c * d, generator=generator, dtype=torch.float64)

    torch.testing.assert_close(ks_matmul(x, values), x @ explicit(values).T)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,), (2, 0, 4)], ids=str)
def test_any_leading_axes_are_rows(leading):
    values, x = torch.randn(2, 3, 4, 5), torch.randn(*leading, 40)

    y = ks_matmul(x, values)

    assert y.shape == (*leading, 30)
    torch.testing.assert_close(y.reshape(-1, 30), ks_matmul(x.reshape(-1, 40), values))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_factor_is_lazylinops(butterfly, pattern):
    rng = np.random.default_rng(1)
    values, x = rng.normal(size=pattern), rng.normal(size=(6, KSPattern(*pattern).width_in))

    y = ks_matmul(torch.from_numpy(x), torch.from_numpy(values))

    np.testing.assert_allclose(y.numpy(), (butterfly.ksm(values) @ x.T).T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_a_chain_is_lazylinops_whose_values_stand_in_reverse(butterfly, chain):
    rng = np.random.default_rng(2)
    factors, x = [rng.normal(size=pattern) for pattern in chain], rng.normal(size=(6, KSPattern(*chain[0]).width_in))

    y = layer(chain, [torch.from_numpy(values).float() for values in factors], torch.from_numpy(x).float())

    expected = (butterfly.ksm(factors[::-1]) @ x.T).T
    assert np.linalg.norm(y.numpy() - expected) < 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("exponent", [1, 3, 5])
def test_the_square_dyadic_butterfly_is_lazylinops_in_reverse(butterfly, exponent):
    size = 2**exponent
    ours = [(2 ** (exponent - step), 2, 2, 2 ** (step - 1)) for step in range(1, exponent + 1)]

    theirs = butterfly.Chain.square_dyadic((size, size)).ks_patterns

    assert [tuple(pattern) for pattern in theirs] == ours[::-1]


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_factors_apply_from_the_first_to_the_last_and_the_bias_after_all(chain):
    factors = [torch.randn(pattern) for pattern in chain]
    x, bias = torch.randn(7, KSPattern(*chain[0]).width_in), torch.randn(KSPattern(*chain[-1]).width_out)
    matrix = torch.eye(x.shape[1], dtype=torch.float64)
    for values in factors:
        matrix = explicit(values.double()) @ matrix

    y = layer(chain, factors, x, bias)

    expected = x.double() @ matrix.T + bias
    assert float((y - expected).norm()) < 1e-6 * float(expected.norm())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_gradients_are_right(pattern):
    a, b, c, d = pattern
    x = torch.randn(2, a * c * d, dtype=torch.float64, requires_grad=True)
    values = torch.randn(a, b, c, d, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(ks_matmul, (x, values))


@pytest.mark.parametrize(
    ("chain", "width", "message"),
    [
        ([(2, 3, 4, 1)], 9, "needs 8 features, its input has 9"),
        ([(2, 3, 4, 1), (1, 5, 7, 1)], 8, "gives 6 features, .* needs 7"),
        ([(2, 3, 4, 1), (0, 5, 6, 1)], 8, "greater than or equal to 1"),
        ([], 8, "at least 1 item"),
    ],
    ids=["input", "neighbours", "zero", "empty"],
)
def test_a_chain_that_does_not_fit_is_refused(chain, width, message):
    y = node("y", "kronecker_linear", "x", patterns=[list(pattern) for pattern in chain])

    with pytest.raises(GraphError, match=f"(?s)'y'.*{message}"):
        parse_graph(document({"x": {"axis": "row", "shape": [width]}}, [y], "y"))


def test_a_pattern_knows_its_sizes():
    pattern = KSPattern(2, 3, 5, 7)

    assert (pattern.width_in, pattern.width_out, pattern.nonzeros) == (70, 42, 210)
    with pytest.raises(ValueError, match="at least 1"):
        KSPattern(1, 0, 1, 1)


def test_the_chains_here_fit():
    for chain in CHAINS:
        assert all(KSPattern(*p).width_out == KSPattern(*q).width_in for p, q in pairwise(chain))
