"""The transformers of the zoo: their sizes, dense and Kronecker-sparse, and that both compute the same network."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lacuna_kernels import Axis, Graph, Value, random_weights, walk
from lacuna_kernels.errors import GraphError
from lacuna_kernels.ops.kronecker_linear import KroneckerLinear
from lacuna_kernels.ops.linear import Linear
from lacuna_kernels.ops.norm import LayerNorm
from lacuna_kernels.zoo import Part, gpt2, vit
from tests.kernels.networks import small_chains

Builder = Callable[..., Graph]
TINY_VIT = {"image_size": 16, "patch_size": 8, "width": 16, "hidden": 64, "heads": 2, "layers": 2}
TINY_GPT2 = {"tokens": 7, "width": 16, "hidden": 64, "heads": 2, "layers": 2}


def tiny_vit(**options: object) -> Graph:
    return vit(["cat", "dog", "neither"], **TINY_VIT, **{"chains": small_chains(16), **options})


def tiny_gpt2(**options: object) -> Graph:
    return gpt2(**TINY_GPT2, **{"chains": small_chains(16), **options})


def millions(graph: Graph) -> float:
    return round(sum(torch.Size(shape).numel() for shape in graph.weight_shapes().values()) / 1e6, 2)


def count(graph: Graph, op: type) -> int:
    return sum(isinstance(node, op) for node in graph.nodes)


def test_dense_vit_has_the_parameters_of_vit_s16():
    assert millions(vit()) == 22.05  # timm's vit_small_patch16_224


def test_dense_gpt2_has_the_parameters_of_gpt2_medium_without_embeddings():
    embeddings = 1e-6 * 1024 * (50_257 + 1024)
    assert millions(gpt2()) == round(354.82 - embeddings, 2)


@pytest.mark.parametrize(("build", "parameters"), [(vit, (22.05, 15.56, 10.25)), (gpt2, (302.31, 121.43, 27.06))])
def test_chains_take_away_parameters_part_by_part(build: Builder, parameters: tuple[float, ...]):
    assert tuple(millions(build(kronecker=parts)) for parts in ((), (Part.MLP,), tuple(Part))) == parameters


@pytest.mark.parametrize(("build", "layers"), [(vit, 12), (gpt2, 24)])
def test_only_the_wanted_parts_are_chains(build: Builder, layers: int):
    assert count(build(), KroneckerLinear) == 0
    assert count(build(kronecker=[Part.MLP]), KroneckerLinear) == 2 * layers
    assert count(build(kronecker=[Part.ATTENTION]), KroneckerLinear) == 4 * layers
    assert count(build(kronecker=tuple(Part)), Linear) == count(build(), Linear) - 4 * layers


@pytest.mark.parametrize("build", [vit, gpt2])
def test_dense_and_sparse_have_the_same_values_at_the_end_of_every_block(build: Builder):
    dense, sparse = build(), build(kronecker=tuple(Part))
    shared = dense.types.keys() & sparse.types.keys()
    assert {name: dense.types[name].shape for name in shared} == {name: sparse.types[name].shape for name in shared}
    assert dense.types.keys() - shared == {name for name in dense.types if name.endswith("_qkv")}


def dense_twin(graph: Graph, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the dense network that computes the same: every chain multiplied out."""
    result = {name: weight for name, weight in weights.items() if ".factors." not in name}
    for node in graph.nodes:
        if isinstance(node, KroneckerLinear):
            matrix = torch.eye(node.chain[0].width_in)
            for index in range(len(node.patterns)):
                a, b, c, d = node.patterns[index]
                blocks = matrix.reshape(-1, a, c, d)
                values = weights[f"{node.name}.factors.{index}"]
                matrix = torch.einsum("abcd,nacd->nabd", values, blocks).reshape(-1, a * b * d)
            result[f"{node.name}.weight"] = matrix.T.contiguous()
    for name in [name for name in result if name.endswith("_q.weight")]:
        block = name.removesuffix("_q.weight")
        for kind in ("weight", "bias"):
            result[f"{block}_qkv.{kind}"] = torch.cat([result.pop(f"{block}_{part}.{kind}") for part in "qkv"])
    return result


@pytest.mark.parametrize("build", [tiny_vit, tiny_gpt2])
def test_the_dense_network_of_multiplied_chains_computes_the_same(build: Builder):
    sparse, dense = build(kronecker=tuple(Part)), build()
    weights = random_weights(sparse, seed=0)
    ((name, kind),) = sparse.input_value_types.items()
    batch = {name: Value(torch.randn(3, *kind.shape, generator=torch.Generator().manual_seed(1)))}

    found, expected = walk(sparse, weights, batch), walk(dense, dense_twin(sparse, weights), batch)

    for output in sparse.outputs:
        torch.testing.assert_close(found[output].data, expected[output].data, rtol=1e-4, atol=1e-5)


def test_gpt2_does_not_see_later_tokens():
    graph = tiny_gpt2(kronecker=tuple(Part))
    weights = random_weights(graph, seed=2)
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(3))
    changed = x.clone()
    changed[:, 4:] *= -1

    before, after = (walk(graph, weights, {"embedded": Value(v)})["states"].data for v in (x, changed))

    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=0.1)


def test_vit_names_its_classes_and_its_probabilities_sum_to_one():
    graph = tiny_vit()
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    result = walk(graph, random_weights(graph, seed=1), {"images": Value(images)})

    assert graph.outputs["label"].classes == ("cat", "dog", "neither")
    assert graph.output_types["probabilities"].axis is Axis.ROW
    torch.testing.assert_close(result["probabilities"].data.sum(1), torch.ones(4))
    assert torch.equal(result["probabilities"].data.argmax(1).int(), result["label"].data)


def test_chains_that_do_not_fit_the_width_are_refused():
    with pytest.raises(GraphError, match="block1_up"):
        tiny_vit(kronecker=[Part.MLP], chains=replace(small_chains(16), up=[(2, 8, 4, 1)]))


@pytest.mark.parametrize(("build", "eps"), [(vit, 1e-6), (gpt2, 1e-5)])
def test_all_norms_have_the_eps_of_the_trained_networks(build: Builder, eps: float):
    assert {node.eps for node in build().nodes if isinstance(node, LayerNorm)} == {eps}
