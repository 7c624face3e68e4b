"""Kronecker-sparse factors of ksmm and lazylinop mean the same as nodes: against the definition, or the package."""

from math import prod

import numpy as np
import pytest
import torch

from lacuna_kernels import ConversionError
from lacuna_kernels.convert import Hints, parse_chain, read_checkpoint
from tests.kernels.converted import CHAIN, assert_same, convert, ks_linear, patterns, stored_factor


def test_the_patterns_here_are_those_of_a_layer_of_8_to_12():
    a, b, _, d = CHAIN[-1]
    assert (prod(CHAIN[0]) // CHAIN[0][1], a * b * d) == (8, 12)


@pytest.mark.parametrize("bs_last", [False, True])
@pytest.mark.parametrize("algo", ["einsum", "bmm", "kernel", "bsr", "dense", "sparse"])
def test_a_layer_of_ksmm_is_read_from_any_of_its_layouts(algo, bs_last, tmp_path):
    values, bias, x = [torch.randn(pattern) for pattern in CHAIN], torch.randn(12), torch.randn(5, 8)
    state = {f"net.1.factors.{index}": stored_factor(factor, algo) for index, factor in enumerate(values)}
    torch.save(state | {"net.1.bias": bias[:, None] if bs_last else bias}, tmp_path / "ks.pt")
    chain = {} if algo == "einsum" else {"net.1": parse_chain("4,3,2,1 2,5,2,3 1,2,5,6")}

    model = convert(read_checkpoint(tmp_path / "ks.pt"), Hints(chain))

    assert patterns(model) == CHAIN
    assert_same(model, x, ks_linear(values, bias, x))


def test_half_precision_factors_become_fp32():
    values = torch.randn(2, 3, 4, 5).half()

    model = convert({"factors.0": values})

    assert torch.equal(model.weights["linear.factors.0"], values.float())


def test_factors_that_do_not_say_their_pattern_need_it_told():
    with pytest.raises(ConversionError, match=r"layer 'fc'.*\[6, 5, 2\] does not say its pattern; give --patterns"):
        convert({"fc.factors.0": torch.ones(6, 5, 2)})


@pytest.mark.parametrize(("chain", "message"), [("1,2,2,1 1,2,2,1", "has 1 factors, 2"), ("1,2,3,1", "is none of")])
def test_patterns_for_every_layer_that_do_not_fit_one_are_told_apart(chain, message):
    told = "these are given for every layer: give each its own, --patterns 'fc=a,b,c,d ...'"
    state = {"fc.factors.0": torch.ones(1, 2, 2, 1)}

    for name in ("", "fc"):
        with pytest.raises(ConversionError, match=message) as caught:
            convert(state, Hints(patterns={name: parse_chain(chain)}))
        assert (told in str(caught.value)) == (name == "")


@pytest.mark.parametrize(
    ("factor", "chain", "message"),
    [
        (torch.ones(6, 5, 3), "2,5,2,3", r"\[6, 5, 3\] is none of .*bmm \[6, 5, 2\]"),
        (torch.ones(6, 5, 2), "2,5,2,3 1,1,1,1", "has 1 factors, 2 patterns are given"),
        (torch.ones(30, 12), "2,5,2,3", "non-zeros beside the support"),
        (torch.ones(4, 4), "1,4,4,1", r"may be kernel or dense; give --layout"),
    ],
)
def test_factors_that_are_none_of_their_patterns_are_refused(factor, chain, message):
    with pytest.raises(ConversionError, match=message):
        convert({"fc.factors.0": factor}, Hints({"": parse_chain(chain)}))


@pytest.mark.parametrize("layout", ["kernel", "dense"])
def test_a_layout_that_shapes_leave_open_can_be_told(layout):
    values, x = torch.randn(1, 4, 4, 1), torch.randn(3, 4)

    model = convert({"factors.0": stored_factor(values, layout)}, Hints({"": parse_chain("1,4,4,1")}, layout))

    assert_same(model, x, ks_linear([values], torch.zeros(4), x))


def test_factors_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ConversionError, match=r"layer 'fc': factors do not fit each other.*a=2, b=3.*a=1, b=1"):
        convert({"fc.factors.0": torch.ones(2, 3, 4, 1), "fc.factors.1": torch.ones(1, 1, 5, 1)})


def test_a_missing_factor_is_told():
    with pytest.raises(ConversionError, match=r"has ks_values.0 .*, ks_values.2 .* with N from 0 on"):
        convert({"ks_values.0": torch.ones(1, 1, 1, 1), "ks_values.2": torch.ones(1, 1, 1, 1)})


def test_a_list_of_factors_is_ksmms_if_told_so():
    factors = {str(index): torch.randn(pattern) for index, pattern in enumerate(CHAIN)}

    assert patterns(convert(factors, source="ksmm")) == CHAIN
    with pytest.raises(ConversionError, match="do not fit"):
        convert(factors)  # lazylinop's would stand in reverse


def written(path, values: list[np.ndarray], lazylinop) -> None:
    if path.suffix == ".npz":
        np.savez(path, *values)
    elif path.suffix == ".json":
        lazylinop.butterfly.save(lazylinop.butterfly.ksm(values), str(path.with_suffix("")))
    else:
        torch.save([torch.from_numpy(factor) for factor in values], path)


@pytest.mark.parametrize("name", ["ks_values.npz", "ks_values.json", "ks_values.pt"])
def test_factors_of_lazylinop_stand_in_the_order_of_the_product(lazylinop, name, tmp_path):
    rng = np.random.default_rng(0)
    values, x = [rng.normal(size=pattern) for pattern in CHAIN[::-1]], rng.normal(size=(5, 8))
    written(tmp_path / name, values, lazylinop)

    model = convert(read_checkpoint(tmp_path / name))

    assert patterns(model) == CHAIN
    assert_same(model, torch.from_numpy(x), torch.from_numpy((lazylinop.butterfly.ksm(values) @ x.T).T))


def test_what_ksd_factorised_is_served_as_it_is(lazylinop):
    matrix = np.random.default_rng(0).normal(size=(32, 32))
    factorised = lazylinop.butterfly.ksd(matrix, lazylinop.butterfly.Chain.square_dyadic((32, 32)))
    x = torch.randn(4, 32)

    model = convert({f"fc.{index}": torch.from_numpy(values) for index, values in enumerate(factorised.ks_values)})

    assert len(patterns(model)) == 5
    assert_same(model, x, x.double() @ torch.from_numpy(factorised.toarray()).T)


def test_layers_of_lazylinop_may_have_names_and_a_bias(lazylinop):
    first, second = ([np.random.default_rng(seed).normal(size=p) for p in CHAIN[::-1]] for seed in (0, 1))
    bias, x = torch.randn(12), torch.randn(3, 8)
    state = {f"a.ks_values.{index}": torch.from_numpy(values) for index, values in enumerate(first)} | {"a.bias": bias}
    state |= {f"b.{index}": torch.from_numpy(values).transpose(1, 2) for index, values in enumerate(second[::-1])}

    model = convert(state)

    y = x.double().numpy() @ lazylinop.butterfly.ksm(first).toarray().T + bias.numpy()
    assert_same(model, x, torch.from_numpy(y @ lazylinop.butterfly.ksm(second).toarray()))


def test_factors_under_ksmms_names_are_lazylinops_if_told_so():
    factors = {f"factors.{index}": torch.randn(pattern) for index, pattern in enumerate(CHAIN[::-1])}

    assert patterns(convert(factors, source="lazylinop")) == CHAIN
    with pytest.raises(ConversionError, match="do not fit"):
        convert(factors)
