"""Layers of other packages as their files hold them, what they compute by their definitions, and what they become."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lacuna_kernels import Model, Value, walk
from lacuna_kernels.convert import Hints, Layers, in_order, sequence
from lacuna_kernels.ops.kronecker_linear import KroneckerLinear
from tests.cases import assert_close, tolerance

Pattern = tuple[int, int, int, int]
CHAIN: list[Pattern] = [(4, 3, 2, 1), (2, 5, 2, 3), (1, 2, 5, 6)]
NO_HINTS = Hints()


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
