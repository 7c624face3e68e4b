"""What is compared end to end, and what is reported of it."""

import torch

from bench.bench_networks import batch_of, cases, forward, line, shares
from lacuna_kernels import random_weights, walk

NETWORKS = ["vit", "gpt2", "monarch"]


def test_every_sparse_network_comes_after_its_dense_twin():
    dense = None
    for case in cases(NETWORKS, layers=1):
        if case.sparse:
            assert (case.network, case.rows) == (dense.network, dense.rows)
            assert case.graph.input_value_types == dense.graph.input_value_types
            assert case.graph.output_types == dense.graph.output_types
        else:
            dense = case


def test_the_sparse_networks_of_the_paper_are_all_there():
    found = [(case.network, case.linears) for case in cases(NETWORKS, layers=1)]
    for network in ("ViT-S/16", "GPT-2-medium"):
        assert [linears for name, linears in found if name == network] == ["dense", "MLP sparse", "all sparse"]
    assert found.count(("3 layers of 4096", "all sparse")) == 3


def test_torchs_network_computes_what_the_graph_means():
    case = next(cases(["monarch"], layers=None))
    weights, batch = random_weights(case.graph, seed=0), batch_of(case)
    found, expected = forward(case.graph, weights, batch), walk(case.graph, weights, batch)
    torch.testing.assert_close(found["three"].data, expected["three"].data)


def test_additions_fused_into_a_linear_layer_count_as_linear():
    graph = next(cases(["gpt2"], layers=1)).graph
    steps = [("block1_norm1", 1.0), ("block1_qkv", 3.0), ("block1_middle", 2.0), ("block1", 2.0), ("states", 2.0)]
    assert shares(graph, steps) == {"linear": 0.7, "layer_norm": 0.3}


def test_a_line_says_how_much_faster_and_thriftier():
    dense = {"ms": 2.0, "us_per_item": 2.0, "per": "row", "millijoules_per_item": 4.0, "watts": 500.0, "way": "torch"}
    dense |= {"network": "Net", "precision": "bf16", "linears": "dense", "rows": 8, "parameters": 3_000_000}
    text = line(
        dense | {"ms": 0.5, "millijoules_per_item": 1.0, "way": "lacuna", "shares": {"linear": 0.25, "add": 0.01}},
        dense,
    )
    for words in ("4.00x", "1 mJ/row (0.25 of dense, 500 W)", "linear 25 %", "3.0 M parameters", "lacuna"):
        assert words in text
