"""What a program would take of a GPU's memory, where there is none."""

import pytest

from lacuna_kernels import Model, Options, Precision, Unsupported, memory_use, parse_graph, random_weights
from lacuna_kernels.cuda import lowering
from lacuna_kernels.ops.global_pool import GlobalPool
from lacuna_kernels.zoo import minkunet
from tests.kernels.networks import cloud, document, node

MINKUNET = minkunet(19)
MODEL = Model(MINKUNET, random_weights(MINKUNET, 0))
PARAMETERS = sum(weight.numel() for weight in MODEL.weights.values())


@pytest.mark.parametrize(("precision", "size"), [(Precision.FP32, 4), (Precision.FP16, 2)])
def test_weights_are_counted_in_the_type_that_they_are_held_in(precision: Precision, size: int) -> None:
    weights = memory_use(MODEL, Options(precision), [1 << 17]).weights

    # channels are padded for the tiles, and norms are folded
    assert weights == pytest.approx(size * PARAMETERS, rel=0.02)


def test_plans_grow_with_the_points() -> None:
    costs = [1 << 14, 1 << 15, 1 << 17]

    plans = memory_use(MODEL, Options(Precision.FP16), costs).plans

    assert [cost for cost, _ in plans] == costs
    sizes = [size for _, size in plans]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.02) and sizes[2] == pytest.approx(8 * sizes[0], rel=0.02)


def test_features_are_most_of_a_plan() -> None:
    """At the finest level 128 channels lie beside 96 that they become."""
    ((points, size),) = memory_use(MODEL, Options(Precision.FP16), [1 << 17]).plans

    assert size >= points * (128 + 96) * 2


def test_a_network_that_no_gpu_runs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("pooled", "global_pool", "points", mode="mean"), node("y", "sigmoid", "pooled")]
    graph = parse_graph(document(cloud("intensity"), nodes, "y"))
    assert memory_use(Model(graph, {}), Options(), [64]).weights == 0

    monkeypatch.delitem(lowering.OWN, GlobalPool)
    with pytest.raises(Unsupported, match="no CUDA kernel"):
        memory_use(Model(graph, {}), Options(), [64])
