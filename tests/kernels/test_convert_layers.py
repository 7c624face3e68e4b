"""Trained layers of other packages mean the same as nodes: each against its published definition, or the package."""

import warnings
from collections.abc import Sequence
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor

from lacuna_kernels import ConversionError, Model, Value, walk
from lacuna_kernels.convert import Hints, Layers, in_order, parse_chain, read_checkpoint, sequence
from lacuna_kernels.ops.kronecker_linear import KroneckerLinear
from tests.cases import assert_close, tolerance

Pattern = tuple[int, int, int, int]
CHAIN: list[Pattern] = [(4, 3, 2, 1), (2, 5, 2, 3), (1, 2, 5, 6)]
NO_HINTS = Hints()


@pytest.fixture(scope="module")
def lazylinop():
    """The package itself; a GPU host may lack it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of packages it could also use
        pytest.importorskip("lazylinop.butterfly")
        pytest.importorskip("lazylinop.signal")
        return pytest.importorskip("lazylinop")


def convert(tensors: dict[str, Tensor], hints: Hints = NO_HINTS, *, source=None, steps=None, width=None) -> Model:
    layers = Layers(tensors, hints, source)
    return sequence(layers, steps or in_order(layers, None), width)


def outputs(model: Model, x: Tensor) -> Tensor:
    (y,) = walk(model.graph, model.weights, {"x": Value(x.float())}).values()
    return y.data


def ops(model: Model) -> list[str]:
    return [node.op for node in model.graph.nodes]


def patterns(model: Model) -> list[Pattern]:
    return [pattern for node in model.graph.nodes if isinstance(node, KroneckerLinear) for pattern in node.patterns]


def assert_same(model: Model, x: Tensor, expected: Tensor) -> None:
    assert_close(outputs(model, x).double(), expected.double(), tolerance(terms=64, layers=8))


# ksmm


def stored_factor(values: Tensor, algo: str) -> Tensor:
    """A factor as KSLinear(algo=...) keeps it, filled block by block, from what its kernels read."""
    a, b, c, d = values.shape
    blocks = [values[i, :, :, m] for i in range(a) for m in range(d)]  # b x c, one after the other
    if algo == "einsum":
        return values
    if algo == "bmm":
        return torch.stack(blocks)
    if algo == "kernel":
        return torch.cat([block.T for block in blocks])
    if algo == "bsr":
        return torch.block_diag(*blocks).to_sparse_bsr((1, 1))
    matrix = torch.zeros(a * b * d, a * c * d)
    for i in range(a):
        for m in range(d):
            rows, columns = i * b * d + m + d * torch.arange(b), i * c * d + m + d * torch.arange(c)
            matrix[rows[:, None], columns] = values[i, :, :, m]
    return matrix.to_sparse_csr() if algo == "sparse" else matrix


def ks_linear(values: Sequence[Tensor], bias: Tensor, x: Tensor) -> Tensor:
    """What KSLinear computes: its dense matrices, the first of the list right-most, and the bias."""
    matrix = torch.eye(x.shape[1])
    for factor in values:
        matrix = stored_factor(factor, "dense") @ matrix
    return x @ matrix.T + bias


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


# lazylinop


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


# Monarch


def monarch_multiply(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The definition (Dao et al., section 3): blocks, a transposition of the features, blocks, and it back again."""
    blocks = len(second)
    y = x @ torch.block_diag(*first).T
    y = y.reshape(len(x), -1, blocks).transpose(1, 2).flatten(1)
    y = y @ torch.block_diag(*second).T
    return y.reshape(len(x), blocks, -1).transpose(1, 2).flatten(1)


def monarch_linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """What MonarchLinear computes: inputs padded with zeros, the first outputs kept, and the bias."""
    first, second = state[f"{name}.blkdiag1"], state[f"{name}.blkdiag2"]
    x = torch.nn.functional.pad(x, (0, first.shape[0] * first.shape[2] - x.shape[1]))
    y = monarch_multiply(x, first, second)
    bias = state.get(f"{name}.bias")
    return y if bias is None else y[:, : len(bias)] + bias


def monarch_state(name: str, width_in: int, width_out: int, blocks: int = 4, *, bias: bool = True) -> dict[str, Tensor]:
    """The tensors of MonarchLinear(width_in, width_out, nblocks=blocks), which are as it makes them."""
    p, s = -(-width_in // blocks), -(-width_out // blocks)
    q = min(p, s) if p < s else s
    state = {f"{name}.blkdiag1": torch.randn(blocks, q, p), f"{name}.blkdiag2": torch.randn(blocks, s, q)}
    return state | ({f"{name}.bias": torch.randn(width_out)} if bias else {})


@pytest.mark.parametrize(("width_in", "width_out"), [(16, 16), (16, 48), (48, 16), (64, 100)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_monarch_layer_needs_no_permutation(width_in, width_out, bias):
    state, x = monarch_state("fc", width_in, width_out, bias=bias), torch.randn(5, width_in)

    model = convert(state)

    (k, q, p), (blocks, s, r) = state["fc.blkdiag1"].shape, state["fc.blkdiag2"].shape
    assert ops(model) == ["kronecker_linear"]
    assert patterns(model) == [(k, q, p, 1), (1, s, r, blocks)]
    assert_same(model, x, monarch_linear(x, state, "fc"))


def test_blocks_may_differ_in_number_and_go_by_other_names():
    first, second, x = torch.randn(6, 4, 5), torch.randn(8, 7, 3), torch.randn(4, 30)

    model = convert({"w1_bfly": first, "w2_bfly": second})

    assert_same(model, x, monarch_multiply(x, first, second))


@pytest.mark.parametrize(("width_in", "hidden", "width_out"), [(16, 22, 16), (13, 22, 10), (15, 17, 5), (16, 20, 12)])
def test_widths_that_blocks_do_not_divide_are_padded_and_cut(width_in, hidden, width_out):
    state = monarch_state("fc1", width_in, hidden) | monarch_state("fc2", hidden, width_out)
    x = torch.randn(5, width_in)

    layers = Layers(state, NO_HINTS)
    model = sequence(layers, in_order(layers, "sigmoid"), width_in)  # sigmoid(0) is not 0: padding comes behind it

    y = monarch_linear(torch.sigmoid(monarch_linear(x, state, "fc1")), state, "fc2")
    assert y.shape == (5, width_out)
    assert_same(model, x, y)


def test_outputs_that_end_with_a_stride_are_cut_from_the_factor_itself():
    state = monarch_state("fc", 16, 16)
    state["fc.bias"] = state["fc.bias"][:8]

    model = convert(state)

    assert ops(model) == ["kronecker_linear"]
    assert patterns(model)[-1] == (1, 2, 4, 4)
    x = torch.randn(3, 16)
    assert_same(model, x, monarch_linear(x, state, "fc"))


def test_the_width_of_a_padded_layer_without_a_bias_is_told():
    state, x = monarch_state("fc", 16, 18, bias=False), torch.randn(3, 16)

    model = convert(state, Hints(out_features={"fc": 18}))

    assert_same(model, x, monarch_linear(x, state, "fc")[:, :18])


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("width_in", [24, 22])
def test_a_block_diagonal_layer_is_one_factor_and_its_shuffle_a_selection(shuffled, width_in):
    weight, bias, x = torch.randn(4, 5, 6), torch.randn(18), torch.randn(3, width_in)

    model = convert(
        {"fc.weight": weight, "fc.bias": bias},
        Hints(shuffled=["f*"] if shuffled else []),
        source="monarch",
        width=width_in,
    )

    padded = torch.nn.functional.pad(x, (0, 24 - width_in))
    if shuffled:  # ShuffleNet's: (group, channel) to (channel, group)
        padded = padded.reshape(3, 4, 6).transpose(1, 2).flatten(1)
    assert patterns(model) == [(4, 5, 6, 1)]
    assert_same(model, x, (padded @ torch.block_diag(*weight).T)[:, :18] + bias)


def test_a_weight_of_three_axes_may_be_a_convolution_and_is_refused():
    with pytest.raises(ConversionError, match="--source monarch"):
        convert({"conv.weight": torch.ones(4, 5, 6)})


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ConversionError, match=r"\[4, 3, 2\] gives k\*q features, \[4, 5, 4\] takes l\*r"):
        convert({"blkdiag1": torch.ones(4, 3, 2), "blkdiag2": torch.ones(4, 5, 4)})


# torch_butterfly


def butterfly_factor(twiddle: Tensor, stride: int) -> Tensor:
    """One factor by its definition (Dao et al. 2020, section 2): blocks [[D1, D2], [D3, D4]] of diagonal matrices."""
    blocks = []
    for entries in twiddle.split(stride):  # [stride, 2, 2]
        quarters = [[torch.diag(entries[:, row, column]) for column in range(2)] for row in range(2)]
        blocks.append(torch.cat([torch.cat(quarter, 1) for quarter in quarters]))
    return torch.block_diag(*blocks)


def butterfly_matrix(twiddle: Tensor, *, increasing: bool) -> Tensor:
    """Stacks on top of each other; in each, blocks of factors whose strides rise and fall in turn."""
    stacks, blocks, log_n, half = twiddle.shape[:4]
    matrices = []
    for stack in range(stacks):
        matrix = torch.eye(2 * half, dtype=twiddle.dtype)
        for block in range(blocks):
            rising = increasing == (block % 2 == 0)
            for step in range(log_n):
                matrix = (
                    butterfly_factor(twiddle[stack, block, step], 2 ** (step if rising else log_n - 1 - step)) @ matrix
                )
        matrices.append(matrix)
    return torch.cat(matrices)


def twiddles(stacks: int, blocks: int, log_n: int) -> Tensor:
    return torch.randn(stacks, blocks, log_n, 2**log_n // 2, 2, 2) / 2**0.5


@pytest.mark.parametrize("merge", [0, 4])
@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize(("stacks", "blocks", "log_n"), [(1, 1, 1), (1, 1, 4), (3, 1, 3), (1, 3, 3), (2, 2, 4)])
def test_a_butterfly_is_its_factors_stride_by_stride(stacks, blocks, log_n, increasing, merge):
    twiddle, bias = twiddles(stacks, blocks, log_n), torch.randn(stacks * 2**log_n)
    x = torch.randn(5, 2**log_n)

    model = convert(
        {"fc.twiddle": twiddle, "fc.bias": bias}, Hints(descending=[] if increasing else ["fc"], largest=merge)
    )

    assert ops(model) == ["kronecker_linear"]
    assert len(patterns(model)) <= (stacks > 1) + blocks * log_n
    assert_same(model, x, x @ butterfly_matrix(twiddle, increasing=increasing).T + bias)


@pytest.mark.parametrize(("width_in", "width_out"), [(16, 16), (13, 16), (16, 9), (11, 43), (16, 8)])
def test_inputs_of_a_butterfly_are_padded_and_its_outputs_cut(width_in, width_out):
    stacks = -(-width_out // 16)
    twiddle, bias, x = twiddles(stacks, 1, 4), torch.randn(width_out), torch.randn(3, width_in)

    model = convert({"fc.twiddle": twiddle, "fc.bias": bias}, width=width_in)

    matrix = butterfly_matrix(twiddle, increasing=True)[:width_out, :width_in]
    assert_same(model, x, x @ matrix.T + bias)


@pytest.mark.parametrize("width", [8, 17])
def test_a_butterfly_pads_to_the_next_power_of_two(width):
    with pytest.raises(ConversionError, match="layer 'fc' takes 9 to 16 features"):
        convert({"fc.twiddle": twiddles(1, 1, 4)}, width=width)


@pytest.mark.parametrize("width", [12, 17])
def test_a_monarch_layer_pads_less_than_a_feature_a_block(width):
    with pytest.raises(ConversionError, match="layer 'fc' takes 13 to 16 features"):
        convert(monarch_state("fc", 16, 16), width=width)


def test_the_hadamard_matrix_is_a_butterfly():
    linalg = pytest.importorskip("scipy.linalg")
    twiddle = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).repeat(1, 1, 5, 16, 1, 1)
    x = torch.randn(3, 32)

    assert_same(convert({"twiddle": twiddle}), x, x.double() @ torch.from_numpy(linalg.hadamard(32)).double())


def test_a_complex_butterfly_is_refused_even_if_it_is_the_fourier_transform(lazylinop):
    n, order = 16, bit_reversal(lazylinop, 16)
    factors = []
    for d in (1, 2, 4, 8):  # Cooley and Tukey: strides rise behind a bit reversal
        turn = torch.exp(-1j * torch.pi * torch.arange(d) / d)
        rows = [torch.stack([torch.ones_like(turn), sign * turn], -1) for sign in (1, -1)]
        factors.append(torch.stack(rows, -2).repeat(n // 2 // d, 1, 1))
    twiddle = torch.stack(factors)[None, None]
    fourier = torch.fft.fft(torch.eye(n)).to(twiddle.dtype)
    assert torch.allclose(
        butterfly_matrix(twiddle, increasing=True)[:, order.argsort()], fourier, atol=1e-5
    )  # the oracle

    with pytest.raises(ConversionError, match="complex and unitary ones cannot be served"):
        convert({"0.permutation": order, "1.twiddle": torch.view_as_real(twiddle)})


def bit_reversal(lazylinop, n: int) -> Tensor:
    return torch.from_numpy((lazylinop.basicops.bitrev(n) @ np.arange(float(n))).astype(np.int64))


@pytest.mark.parametrize("merge", [0, 16])
def test_a_permutation_in_front_is_a_selection_or_absorbed_by_a_factor_that_holds_it(lazylinop, merge):
    twiddle, x = twiddles(1, 1, 4), torch.randn(3, 16)
    order = bit_reversal(lazylinop, 16)

    model = convert({"0.permutation": order, "1.twiddle": twiddle}, Hints(largest=merge))

    assert ops(model) == (["kronecker_linear"] if merge else ["select_features", "kronecker_linear"])
    assert_same(model, x, x[:, order] @ butterfly_matrix(twiddle, increasing=True).T)


def test_a_permutation_inside_of_blocks_is_absorbed_by_a_sparse_factor():
    values, x = torch.randn(3, 4, 5, 2), torch.randn(4, 30)
    order = torch.arange(30).reshape(3, 5, 2)
    order = torch.stack([torch.stack([block[torch.randperm(5), m] for m in range(2)], 1) for block in order]).flatten()

    model = convert({"0.permutation": order, "1.factors.0": values})

    assert ops(model) == ["kronecker_linear"]
    assert_same(model, x, ks_linear([values], torch.zeros(24), x[:, order]))


def test_a_permutation_behind_stands_behind():
    twiddle, order, x = twiddles(1, 1, 3), torch.randperm(8), torch.randn(3, 8)

    model = convert({"0.twiddle": twiddle, "1.permutation": order})

    assert ops(model) == ["kronecker_linear", "select_features"]
    assert_same(model, x, (x @ butterfly_matrix(twiddle, increasing=True).T)[:, order])


@pytest.mark.parametrize("order", [[0, 0, 1], [1, 2, 3], [[0, 1], [1, 0]]])
def test_what_is_no_permutation_is_refused(order):
    with pytest.raises(ConversionError, match="are no permutation"):
        convert({"0.permutation": torch.tensor(order)})


@pytest.mark.parametrize("shape", [(1, 1, 3, 4, 4), (1, 1, 3, 8, 2, 2), (1, 1, 3, 4, 2, 2, 2)])
def test_twiddles_of_other_shapes_are_refused(shape):
    with pytest.raises(ConversionError, match=r"a real twiddle is \[nstacks, nblocks, log n, n/2, 2, 2\]"):
        convert({"fc.twiddle": torch.ones(shape)})


def test_more_factors_than_a_node_holds_are_refused_or_merged():
    twiddle = torch.eye(2).expand(1, 22, 3, 4, 2, 2).contiguous()

    with pytest.raises(ConversionError, match="has 66 factors, 64 fit: give --merge"):
        convert({"twiddle": twiddle})
    assert len(patterns(convert({"twiddle": twiddle}, Hints(largest=8)))) == 1


# none of these


def test_a_layer_of_no_known_kind_is_told_with_its_keys():
    with pytest.raises(
        ConversionError, match=r"layer 'emb' is of no known kind: it has table \[3\]. Known are factors"
    ):
        convert({"fc.weight": torch.ones(2, 3), "emb.table": torch.ones(3)})


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(4, 4, dtype=torch.complex64), "is complex; only real factors can be served"),
        (torch.ones(4, 4, dtype=torch.int8), "is torch.int8, not fp16, bf16, fp32 or fp64"),
        (torch.ones(4, 4).to(torch.float8_e4m3fn), "is torch.float8_e4m3fn, not fp16, .* by their scales"),
        (torch.ones(4, 4, device="meta"), "has no numbers"),
        (torch.ones(0, 4), "has no numbers"),
        (torch.eye(4).to_sparse(), "is sparse"),
        (torch.ones(1).expand(10**9, 10**9), "repeats 1 stored numbers"),  # a file of 1 kB
        (torch.ones(2, 1).expand(2, 2), "repeats 2 stored numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_are_no_plain_numbers_are_refused(tensor, message):
    state = {"fc.weight": tensor, "rest.weight": torch.ones(2, 2)}

    with pytest.raises(ConversionError, match=rf"layer 'fc': 'weight' .* {message}"):
        convert(state)
    assert ops(convert(state, steps=["rest"])) == ["linear"]  # what is not used need not be readable


@pytest.mark.parametrize("bias", [torch.ones(2, 2), torch.tensor(1.0), torch.ones(4, 1, 1), torch.ones(4).to_sparse()])
def test_a_bias_that_is_no_vector_is_refused(bias):
    with pytest.raises(ConversionError, match=r"layer 'fc': 'bias' .* is (no vector|sparse)"):
        convert({"fc.factors.0": torch.ones(1, 4, 4, 1), "fc.bias": bias})


def test_a_permutation_of_fractions_is_refused():
    with pytest.raises(ConversionError, match=r"'permutation' \[2\] is torch.float32, not whole numbers"):
        convert({"0.permutation": torch.tensor([1.0, 0.0])})


@pytest.mark.parametrize("leaf", ["", "²", "factors.²", "9" * 5000, "factors.00"])
def test_odd_names_are_of_no_known_kind(leaf):
    with pytest.raises(ConversionError, match="of no known kind"):
        convert({f"fc.{leaf}": torch.ones(1, 2, 2, 1)})


@pytest.mark.parametrize(
    "hints",
    [
        Hints(patterns={"fd": parse_chain("1,4,4,1")}),
        Hints(out_features={"fd": 3}),
        Hints(out_features={"": 3}),
        Hints(descending=["f?", "g*"]),
        Hints(shuffled=["fd"]),
    ],
)
def test_what_is_told_of_a_layer_that_is_not_there_is_refused(hints):
    with pytest.raises(ConversionError, match=r"'(fd|g\*|)' is no layer of the file \('fc'\)"):
        convert({"fc.factors.0": torch.ones(1, 4, 4, 1)}, hints)


def test_outputs_are_cut_from_any_kind_of_factors():
    values, x = torch.randn(2, 3, 4, 2), torch.randn(5, 16)

    for name in ("fc.factors.0", "fc.0"):
        model = convert({name: values}, Hints(out_features={"fc": 3}))
        assert patterns(model) == [(2, 2, 4, 2)]
        assert_same(model, x, ks_linear([values], torch.zeros(12), x)[:, :3])


def test_a_shuffle_is_of_block_diagonal_layers_alone():
    state = {"a.weight": torch.randn(6, 6), "b.weight": torch.randn(2, 3, 3), "c.permutation": torch.randperm(6)}
    state |= monarch_state("d", 6, 6, blocks=2)

    model = convert(state, Hints(shuffled=["*"]), source="monarch")

    x = torch.randn(4, 6)
    y = (x @ state["a.weight"].T).reshape(4, 2, 3).transpose(1, 2).flatten(1)
    y = (y @ torch.block_diag(*state["b.weight"]).T)[:, state["c.permutation"]]
    assert_same(model, x, monarch_linear(y, state, "d"))


def test_the_patterns_here_are_those_of_a_layer_of_8_to_12():
    a, b, _, d = CHAIN[-1]
    assert (prod(CHAIN[0]) // CHAIN[0][1], a * b * d) == (8, 12)
