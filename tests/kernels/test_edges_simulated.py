"""The kernels that pair edges and add up over them, run on the CPU: tests/kernels/simulated.py."""

import pytest
import torch

from lacuna_kernels import Precision, Value, parse_graph, random_weights, walk
from lacuna_kernels.cuda import edges as on_device
from lacuna_kernels.cuda.blueprint import draw
from lacuna_kernels.cuda.capacity import Capacity
from lacuna_kernels.cuda.device import DeviceLimits
from lacuna_kernels.cuda.edges import PairBuffer, edge_sums
from lacuna_kernels.cuda.fusion import fuse
from lacuna_kernels.cuda.steps import ITEMS, Weights
from lacuna_kernels.ops.relational_graph_conv import RelationalGraphConv
from lacuna_kernels.ops.sparse_conv import gather_multiply_add
from tests.cases import GRAPHS, GraphCase, assert_close, tolerance
from tests.kernels.device_graphs import assert_pairs, expected_pairs, paired
from tests.kernels.device_sites import DTYPES, SPARE, nonsense
from tests.kernels.networks import document, graphs, node
from tests.kernels.simulated import SimulatedDevice, guarded


def scan_on_the_cpu(device, values, running, count, work, total):
    """As exclusive_scan, but at once."""
    used, (whole, most, overflow) = int(count), total
    sums = values[:used].cumsum(0).int()
    running[:used] = sums - values[:used]
    whole[0] = min(int(values[:used].sum()), most)
    overflow[0] |= int(values[:used].sum()) > most


def sort_on_the_cpu(device, keys, count, bits, work):
    """As sort, but at once."""
    used = keys[: int(count)]
    assert not len(used) or (int(used.min()) >= 0 and int(used.max()) >> bits == 0)
    order = torch.sort(used, stable=True).indices
    sorted_keys, places = work[: len(keys)], work[len(keys) : 2 * len(keys)]
    sorted_keys[: len(used)], places[: len(used)] = used[order], order.int()
    return sorted_keys, places


@pytest.fixture(autouse=True)
def plain_sort_and_scan(monkeypatch):
    monkeypatch.setattr(on_device, "exclusive_scan", scan_on_the_cpu)
    monkeypatch.setattr(on_device, "sort", sort_on_the_cpu)


@pytest.mark.parametrize("case", GRAPHS, ids=str)
def test_edges_are_paired_by_target_and_relation_and_keep_their_order(folder, case):
    batch = case.batch(1)

    pairs, kernel_map = paired(SimulatedDevice(folder, 1, 0, plain=True), batch, case.relations, nonsense)

    assert_pairs(pairs, kernel_map, batch)


@pytest.mark.parametrize("relations", [1, 2, 16, 17, 32, 33, 64])
def test_any_number_of_relations_has_its_words(folder, relations):
    batch = GraphCase("some", (70,), (400,), relations=relations).batch(1, seed=relations)

    pairs, kernel_map = paired(SimulatedDevice(folder, 1, 1, plain=True), batch, relations, nonsense)

    assert_pairs(pairs, kernel_map, batch)


def given_pairs(batch):
    _, sources, starts = expected_pairs(batch)
    count = torch.tensor([len(starts) - 1], dtype=torch.int32)
    return PairBuffer(sources.int(), starts.int(), count)


def padded(x, width):
    """x as the first columns of a wider matrix whose others are NaN."""
    wide = torch.full((len(x), width), torch.nan, dtype=x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


@pytest.mark.parametrize("channels, width", [(16, 16), (24, 40), (5, 5), (1, 3), (72, 72)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mean", [True, False], ids=["mean", "sum"])
def test_features_are_added_over_the_edges_of_a_pair(folder, channels, width, dtype, mean):
    for case in (GRAPHS[1], GRAPHS[-1], GRAPHS[3]):  # few edges a pair; more than a team takes; none
        batch = case.batch(channels)
        pairs, x = given_pairs(batch), padded(batch["nodes"].data.to(dtype), width)
        count = int(pairs.count)
        y, memory = guarded(count + SPARE, channels, dtype)

        edge_sums(SimulatedDevice(folder, 1, 0), x, pairs, y, mean=mean)

        of_pair = torch.repeat_interleave(pairs.starts.diff())
        sums = torch.zeros(count, channels, dtype=torch.float64).index_add(0, of_pair, x[pairs.sources].double())
        expected = sums / pairs.starts.diff()[:, None] if mean else sums
        assert_close(y[:count], expected, tolerance(dtype, 1500))
        assert int(memory.isnan().sum()) == len(memory) - count * channels


def test_all_together_are_the_convolution(folder):
    case, torch_weight = GRAPHS[1], torch.randn(4, 8, 6)
    batch = case.batch(8)
    pairs, kernel_map = paired(SimulatedDevice(folder, 1, 3, plain=True), batch, 4, nonsense)
    sums, _ = guarded(len(pairs.sources), 8, torch.float32)
    edge_sums(SimulatedDevice(folder, 1, 3), batch["nodes"].data, pairs, sums, mean=True)

    n = len(batch["nodes"].data)
    found = torch.empty(n, 6)
    found[kernel_map.order[0, :n].long()] = gather_multiply_add(sums, torch_weight, kernel_map.rows[:, :n].long())

    shape = {"out_channels": 6, "root": False, "bias": False}
    conv = RelationalGraphConv(name="y", op="relational_graph_conv", inputs=("nodes", "edges"), **shape)
    expected = conv.reference([batch["nodes"], batch["edges"]], {"weight": torch_weight}, None)
    assert isinstance(expected, Value)
    assert_close(found, expected.data, tolerance(terms=100))


class EitherDevice:
    """Kernels whose threads never wait for one another by one simulation, others by the other."""

    limits = DeviceLimits(1, 163_840, "sm_80")

    def __init__(self, folder):
        self.plain, self.full = SimulatedDevice(folder, 1, 0, plain=True), SimulatedDevice(folder, 1, 0)

    def kernel(self, variant):
        return (self.plain if variant.source == "edges.cu" else self.full).kernel(variant)


FEW, MANY = (
    GraphCase("few", (50, 1, 60, 7), (90, 3, 150, 0)),
    GraphCase("many relations", (30, 10), (120, 60), relations=40),
)
RESIDUAL = [
    node("a", "relational_graph_conv", "nodes", "edges", out_channels=12, activation="relu"),
    node("b", "relational_graph_conv", "a", "edges", out_channels=12, bias=False, aggregate="sum"),
    node("b_norm", "batch_norm", "b"),
    node("sum", "add", "b_norm", "a"),
    node("c", "relational_graph_conv", "sum", "edges", out_channels=3, root=False, bias=False),
]


@pytest.mark.parametrize("case", [FEW, GRAPHS[3], MANY], ids=str)
def test_steps_of_a_plan_are_what_the_network_means(folder, case):
    graph = parse_graph(document(graphs(case.relations), RESIDUAL, "sum", "c"))
    weights, batch = random_weights(graph, 0), case.batch(8)
    room, layers = Capacity(300, 4), fuse(graph, weights, Precision.FP32)
    plan = draw(EitherDevice(folder), graph, layers, Weights(torch.device("cpu")), room)

    memory = torch.full((plan.arena.bytes,), 0x7B, dtype=torch.uint8)
    header = plan.header.views(torch.zeros(plan.header.spec.shape, dtype=torch.int32))
    outside = {name: torch.zeros(spec.shape, dtype=spec.dtype) for name, spec in (plan.inputs | plan.outputs).items()}
    buffers = {**plan.views(memory), **outside, **header}
    header[ITEMS][0] = len(case.nodes)
    for name, value in batch.items():
        buffers[name][: len(value.data)] = value.data
        header[f"{name}:count"][0] = len(value.data)
        header[f"{name}:offsets"][:] = len(value.data)
        header[f"{name}:offsets"][: len(value.offsets)] = value.offsets
    for step in plan.steps:
        step.run(buffers)

    for name, value in walk(graph, weights, batch).items():
        found = buffers[plan.results[name]][: len(value.data)]
        assert_close(found, value.data, tolerance(terms=2000, layers=4))
