"""One cell of the benchmark of sparse-convolution networks: times, energy, memory and error, ours and spconv's."""

import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from itertools import cycle
from math import ceil
from statistics import median
from typing import Any

import torch

from bench.energy import Energy, Meter
from bench.gpu import pinned
from bench.sparse_conv_cells import Network, weights_of
from bench.sparse_conv_error import error, exact, found, rounded, with_scores
from lacuna_kernels import Axis, Backend, Batch, Graph, Options, Precision, Value, Weights, cost
from lacuna_kernels.cuda.backend import CudaProgram
from lacuna_kernels.cuda.plan import IN_FLIGHT
from lacuna_kernels.ops.context import Context
from lacuna_kernels.program import Program

try:
    from bench import spconv_networks
except ImportError:  # a peer to measure against, if it is there
    spconv_networks = None  # type: ignore[assignment]

STAGES = ("voxels", "sites and maps", "convolutions", "points", "neck", "head", "others")
_OPS = {"voxelize": "sites and maps", "linear": "head", "argmax": "head", "point_to_voxel": "points"}
_AXES = {Axis.SITE: "convolutions", Axis.POINT: "points", Axis.IMAGE: "neck"}


def peer_version() -> str | None:
    """Which spconv there is to measure against."""
    return None if spconv_networks is None else spconv_networks.VERSION


def run_cell(
    backend: Backend, network: Network, precision: Precision, batches: Sequence[Batch], meter: Meter | None
) -> dict[str, Any]:
    """Everything of one network and type, each batch timed once; errors are those of the first batch.

    On a GPU the batches are pinned before anything is timed.
    """
    graph = network.build()
    weights, twin = rounded(weights_of(graph), precision), with_scores(graph)
    options = Options(precision, initial_cost=max(map(cost, batches)), max_cost=1 << 23)
    program = backend.compile(graph, weights, options)
    on_gpu = isinstance(program, CudaProgram)
    if on_gpu:
        batches = [pinned(batch) for batch in batches]
    expected = exact(twin, weights, batches[0], "cuda" if on_gpu else "cpu")
    try:
        record = sizes(graph, batches[0]) | measure(program, batches)
        if meter is not None:
            record |= energy_of(in_a_row(program, batches, meter, record["device"]["median"]), batches[0])
        if isinstance(program, CudaProgram):
            record["stages"] = stages(graph, program.profile())
        if on_gpu and spconv_networks is not None and network.peer and precision is Precision.FP16:
            record["spconv"] = measure_spconv(graph, weights, program, batches, meter, expected)
    finally:
        program.close()
    return record | {"error": error(found(backend, twin, weights, batches[0], precision), expected)}


def sizes(graph: Graph, batch: Batch) -> dict[str, int]:
    """What a cloud of a batch has on average: points, and voxels, those inside the grid's range."""
    grid = next(node for node in graph.nodes if node.op == "voxelize")
    cloud = batch[grid.inputs[0]]
    voxels = grid.reference([cloud], {}, Context(graph.types))
    return {"points": round(len(cloud.data) / cloud.items), "voxels": round(len(voxels.data) / cloud.items)}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: the median, and what nine and ninety-nine of a hundred do not exceed."""
    ms = sorted(1000 * value for value in seconds)
    at = {f"p{percent}": ms[ceil(percent * len(ms) / 100) - 1] for percent in (90, 99)}
    return {name: float(f"{value:.4g}") for name, value in ({"median": median(ms)} | at).items()}


def measure(program: Program, batches: Sequence[Batch]) -> dict[str, Any]:
    """Run the batches one after the other, twice; only the second time counts, as the plan has room for all then."""
    for batch in batches:
        program.submit(batch).result()
    busy, handed, waited = [], [], []
    for batch in batches:
        start = time.perf_counter()
        pending = program.submit(batch)
        handed.append(time.perf_counter() - start)
        busy.append(pending.result().busy_seconds)
        waited.append(time.perf_counter() - start)
    return {
        "device": percentiles(busy),
        "submit": percentiles(handed),
        "host to host": percentiles(waited),
        "MiB": round(program.memory_bytes / 2**20),
    }


def in_a_row(program: Program, batches: Sequence[Batch], meter: Meter, ms: float) -> Energy:
    """Of a batch, while they follow one another."""
    running: deque[Any] = deque()
    turn = cycle(batches)

    def run() -> None:
        running.append(program.submit(next(turn)))
        if len(running) == IN_FLIGHT:
            running.popleft().result()

    energy = meter.measure(run, 1, ms)
    while running:
        running.popleft().result()
    return energy


def energy_of(energy: Energy, batch: Batch) -> dict[str, float]:
    """Of one cloud, and how long after one batch the next was done."""
    items = next(iter(batch.values())).items
    told = {"millijoules": 1e3 * energy.joules / items, "watts": energy.watts, "ms in a row": energy.ms}
    return {what: float(f"{value:.4g}") for what, value in told.items()}


def stages(graph: Graph, steps: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Milliseconds by what a step is for, in the order of STAGES."""
    spent: dict[str, float] = defaultdict(float)
    for name, seconds in steps:
        spent[stage(graph, name)] += 1000 * seconds
    return {name: round(spent[name], 4) for name in STAGES if name in spent}


def stage(graph: Graph, step: str) -> str:
    """What a step is for, which has the name of the last node that was fused into it."""
    node = graph.by_name.get(step)
    if node is None:
        return "voxels" if step.startswith("place ") else "sites and maps" if step.startswith("beside ") else "others"
    return _OPS.get(node.op) or _AXES.get(graph.types[step].axis, "others")


def measure_spconv(
    graph: Graph,
    weights: Weights,
    program: Program,
    batches: Sequence[Batch],
    meter: Meter | None,
    expected: Mapping[str, Value],
) -> dict[str, Any]:
    """The same of spconv, how far its outputs are from ours, and its own error."""
    before = torch.cuda.memory_allocated()
    network = spconv_networks.Network(graph, weights)
    own = torch.cuda.memory_allocated() - before
    given = [spconv_networks.voxels_of(graph, batch) for batch in batches]
    theirs = network.run(given[0])
    record: dict[str, Any] = spconv_networks.agreement(program.submit(batches[0]).result().values, theirs)
    record["error"] = error(dict.fromkeys(expected, network.numbers(given[0])), expected)
    del theirs
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for voxels in given:
        network.run(voxels)
    busy, waited = [], []
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for voxels in given:
        torch.cuda.synchronize()
        began = time.perf_counter()
        start.record()
        network.run(voxels)
        end.record()
        end.synchronize()
        waited.append(time.perf_counter() - began)
        busy.append(start.elapsed_time(end) / 1000)
    record |= {"device": percentiles(busy), "host to host": percentiles(waited)}
    record["MiB"] = round((own + torch.cuda.max_memory_allocated() - before) / 2**20)
    if meter is not None:
        turn = cycle(given)
        energy = meter.measure(lambda: network.run(next(turn)), 1, record["device"]["median"])
        record |= energy_of(energy, batches[0])
    return record
