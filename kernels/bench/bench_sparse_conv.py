"""Sparse-convolution networks end to end, on clouds that are new every time: from points to labels or features.

    python kernels/bench/bench_sparse_conv.py SCAN.bin [more.bin ...] [--networks minkunet42 centerpoint ...]
        [--batches 1 2 4 8] [--precisions fp16] [--frames 200] [--different 32] [--no-energy] [--results FILE.jsonl]

A scan is fp32 x, y, z, intensity, as KITTI has it; frames are made of the scans in turn (scans.py), clouds of
CenterPoint of SWEEPS copies of every SPARSE-th point. "device" is from the graph's first kernel to its last, by events;
"submit" how long the host takes to hand a batch over; "host to host" what a caller waits. Joules are the GPU's own
counter while batches follow one another, two in flight. Where spconv is there it runs the same networks in fp16 on the
same batches, from voxels that were made before; it has no CUDA graph, and its "device" includes what waits for the
host. What a results file has already is not measured again.
"""

import argparse
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.energy import Meter
from bench.gpu import need_gpu
from bench.kronecker_results import Results
from bench.scans import frames, read, sweeps
from lacuna_kernels import Backend, Batch, Graph, Options, Precision, Value, collate, open_backend, random_weights
from lacuna_kernels.cuda.backend import CudaProgram
from lacuna_kernels.cuda.plan import IN_FLIGHT
from lacuna_kernels.program import Program
from lacuna_kernels.zoo import centerpoint_encoder, minkunet, spvcnn

try:
    from bench import spconv_networks
except ImportError:  # a peer to measure against, if it is there
    spconv_networks = None  # type: ignore[assignment]

SWEEPS, SPARSE = 10, 4
STAGES = {"voxelize": "sites and maps", "relu": "convolutions", "add": "convolutions", "sparse_conv": "convolutions"}
"""What a step does, whose name is that of the last node that was fused into it."""


@dataclass(frozen=True, slots=True)
class Network:
    """What is measured, what its clouds are made of a frame by, and whether spconv can run it."""

    build: Callable[[], Graph]
    cloud: Callable[[Tensor], Tensor] = lambda frame: frame
    peer: bool = True


NETWORKS = {
    "minkunet42": Network(lambda: minkunet(19)),
    "minkunet18": Network(lambda: minkunet(19, blocks=(1,) * 8)),
    "spvcnn": Network(lambda: spvcnn(19), peer=False),
    "centerpoint": Network(centerpoint_encoder, lambda frame: sweeps(frame[::SPARSE], SWEEPS)),
}


def weights_of(graph: Graph) -> dict[str, Tensor]:
    """Random ones, the first layer's small: metres are features too, and fp16 has to hold what comes of them."""
    weights = random_weights(graph, 0)
    first = next(node.name for node in graph.nodes if node.op == "sparse_conv")
    return {**weights, f"{first}.weight": weights[f"{first}.weight"] / 16}


def batches_of(cloud: Callable[[Tensor], Tensor], scans: Sequence[Tensor], size: int, number: int) -> Iterator[Batch]:
    """So many batches of clouds, no two alike."""
    clouds = map(cloud, frames(scans))
    for _ in range(number):
        parts = list(islice(clouds, size))
        yield collate([{"points": Value(part, torch.tensor([0, len(part)]))} for part in parts])


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: the median, and what nine and ninety-nine of a hundred do not exceed."""
    ms = sorted(1000 * value for value in seconds)
    at = {"p90": ms[min(len(ms) - 1, int(0.9 * len(ms)))], "p99": ms[min(len(ms) - 1, int(0.99 * len(ms)))]}
    return {name: float(f"{value:.4g}") for name, value in ({"median": median(ms)} | at).items()}


def measure(program: Program, batches: Sequence[Batch], number: int) -> dict[str, Any]:
    """Run so many batches, one after the other; one that is larger than the plan is not counted, but its successors."""
    for batch in batches:
        program.submit(batch).result()
    busy, handed, waited = [], [], []
    for index in range(number):
        start = time.perf_counter()
        pending = program.submit(batches[index % len(batches)])
        handed.append(time.perf_counter() - start)
        busy.append(pending.result().busy_seconds)
        waited.append(time.perf_counter() - start)
    return {
        "device": percentiles(busy),
        "submit": percentiles(handed),
        "host to host": percentiles(waited),
        "MiB": round(program.memory_bytes / 2**20),
    }


def millijoules(program: Program, batches: Sequence[Batch], meter: Meter, ms: float) -> float:
    """Of one cloud, while batches follow one another."""
    running: deque[Any] = deque()
    turn = cycle(batches)

    def run() -> None:
        running.append(program.submit(next(turn)))
        if len(running) == IN_FLIGHT:
            running.popleft().result()

    energy = meter.measure(run, 1, ms)
    while running:
        running.popleft().result()
    items = next(iter(batches[0].values())).items
    return float(f"{1e3 * energy.joules / items:.4g}")


def measure_spconv(
    graph: Graph, program: Program, batches: Sequence[Batch], number: int, meter: Meter | None
) -> dict[str, Any]:
    """The same of spconv, and how far its outputs are from ours."""
    network = spconv_networks.Network(graph, weights_of(graph))
    given = [spconv_networks.voxels_of(graph, batch) for batch in batches]
    for voxels in given:
        network.run(voxels)
    theirs = network.run(given[0])
    busy, waited = [], []
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for index in range(number):
        torch.cuda.synchronize()
        began = time.perf_counter()
        start.record()
        network.run(given[index % len(given)])
        end.record()
        end.synchronize()
        waited.append(time.perf_counter() - began)
        busy.append(start.elapsed_time(end) / 1000)
    record: dict[str, Any] = {"device": percentiles(busy), "host to host": percentiles(waited)}
    record |= spconv_networks.agreement(program.submit(batches[0]).result().values, theirs)
    if meter is not None:
        turn = cycle(given)
        energy = meter.measure(lambda: network.run(next(turn)), 1, record["device"]["median"])
        record["millijoules"] = float(f"{1e3 * energy.joules / given[0].items:.4g}")
    return record


def stages(graph: Graph, steps: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Milliseconds by kind of step: voxels, sites and maps, then by op."""
    spent: dict[str, float] = defaultdict(float)
    for name, seconds in steps:
        node = graph.by_name.get(name)
        op = node.op if node else "voxels" if name.startswith("place ") else "others"
        spent[STAGES.get(op, op)] += 1000 * seconds
    return {op: round(ms, 4) for op, ms in sorted(spent.items(), key=lambda item: -item[1])}


def line(record: Mapping[str, Any]) -> str:
    """A record in words."""
    parts = [f"{kind} {' / '.join(map(str, record[kind].values()))}" for kind in ("device", "submit", "host to host")]
    energy = f", {record['millijoules']} mJ a cloud" if "millijoules" in record else ""
    spent = ", ".join(f"{op} {ms}" for op, ms in record.get("stages", {}).items())
    peer = f"\n{'':28} spconv {record['spconv']}" if "spconv" in record else ""
    return f"{record['key']:28} ms median / p90 / p99: {', '.join(parts)}; {record['MiB']} MiB{energy}; {spent}{peer}"


def run_case(
    backend: Backend, network: Network, precision: Precision, batches: Sequence[Batch], number: int, meter: Meter | None
) -> dict[str, Any]:
    """Everything of one network, precision and size of batches."""
    graph = network.build()
    cost = max(len(batch["points"].data) for batch in batches)
    options = Options(precision, initial_cost=cost, max_cost=1 << 23)
    program = backend.compile(graph, weights_of(graph), options)
    try:
        record = measure(program, batches, number)
        if meter is not None:
            record["millijoules"] = millijoules(program, batches, meter, record["device"]["median"])
        if isinstance(program, CudaProgram):
            record["stages"] = stages(graph, program.profile())
            if spconv_networks is not None and network.peer and precision is Precision.FP16:
                record["spconv"] = measure_spconv(graph, program, batches, number, meter)
        return record
    finally:
        program.close()


def main() -> None:
    """Measure what is missing, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["minkunet42", "centerpoint"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--precisions", nargs="+", type=Precision, default=[Precision.FP16])
    parser.add_argument("--frames", type=int, default=200, help="batches that are timed")
    parser.add_argument("--different", type=int, default=32, help="that are made beforehand and gone through")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--no-energy", action="store_true")
    parser.add_argument("--results", type=Path, help="JSON lines; continued if there")
    options = parser.parse_args()
    if options.device == "cuda":
        need_gpu()
    backend = open_backend(options.device)
    meter = None if options.no_energy or options.device == "cpu" else Meter()
    scans = [read(path) for path in options.scans]
    results = Results(options.results or Path("/dev/null"))
    for name, precision, size in product(options.networks, options.precisions, options.batches):
        key = f"{name} {precision} x{size}"
        if not results.has("network", key):
            batches = list(batches_of(NETWORKS[name].cloud, scans, size, min(options.different, options.frames)))
            record = run_case(backend, NETWORKS[name], precision, batches, options.frames, meter)
            results.add(
                "network", {"key": key, "device name": backend.device.name, "torch": torch.__version__} | record
            )
        print(line(results.get("network", key)), flush=True)
    backend.close()


if __name__ == "__main__":
    main()
