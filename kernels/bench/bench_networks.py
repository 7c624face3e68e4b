"""Networks end to end on a GPU: dense against Kronecker-sparse, the same graph otherwise, in one run.

    python kernels/bench/bench_networks.py [vit gpt2 monarch] [--precisions bf16 fp16 fp32] [--layers 2] [--no-energy]

ViT-S/16 on images, GPT-2-medium's blocks on embedded tokens (both as in arXiv 2405.15013), and a multilayer perceptron
4096 wide on few rows. "torch" is the same network by PyTorch's own operations (cuBLAS, its attention) in a CUDA graph,
all of it in the precision named; "lacuna" is the program of the CUDA backend. Gains are over the faster dense network.
Milliseconds are those of a graph on the device that is replayed over and over, medians; joules are the GPU's own
counter while it replays; parts of the time by op are from timing step by step.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.energy import Meter
from bench.gpu import need_gpu
from bench.timing import captured, elapsed_ms
from lacuna_kernels import Graph, Options, Precision, Value, Weights, random_weights
from lacuna_kernels.cuda.backend import CudaBackend
from lacuna_kernels.cuda.plan import IN_FLIGHT
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.model import node_weights
from lacuna_kernels.ops.context import Context
from lacuna_kernels.zoo import Part, gpt2, vit
from lacuna_kernels.zoo.draft import Draft

MONARCH_4096 = [(64, 64, 64, 1), (1, 64, 64, 64)]
IMAGES, SEQUENCES, FEW_ROWS = 128, 8, (1, 8, 64)
REPEATS, LEAST_MS, SMALL_SHARE = 9, 1.0, 0.02
NETWORKS = ("vit", "gpt2", "monarch")
LINEARS = ("linear", "kronecker_linear")


@dataclass(frozen=True, slots=True)
class Case:
    """A network with the batch that it is run on.

    per  what a row consists of, for the report: an image, tokens, a row
    """

    network: str
    linears: str
    sparse: bool
    graph: Graph
    rows: int
    per: tuple[str, int]


def cases(networks: Sequence[str], layers: int | None) -> Iterator[Case]:
    """Dense first, then its sparse twins."""
    parts: dict[str, tuple[Part, ...]] = {"dense": (), "MLP sparse": (Part.MLP,), "all sparse": tuple(Part)}
    for name, chosen in parts.items():
        if "vit" in networks:
            yield Case("ViT-S/16", name, bool(chosen), vit(kronecker=chosen, layers=layers or 12), IMAGES, ("image", 1))
    for name, chosen in parts.items():
        if "gpt2" in networks:
            graph = gpt2(kronecker=chosen, layers=layers or 24)
            tokens = graph.types["embedded"].shape[0]
            yield Case("GPT-2-medium", name, bool(chosen), graph, SEQUENCES, ("token", tokens))
    for rows in FEW_ROWS if "monarch" in networks else ():
        yield Case("3 layers of 4096", "dense", False, three_layers(sparse=False), rows, ("row", 1))
        yield Case("3 layers of 4096", "all sparse", True, three_layers(sparse=True), rows, ("row", 1))


def three_layers(sparse: bool) -> Graph:
    """Nothing but three layers with relu, 4096 wide: dense, or Monarch's two factors each."""
    draft, x = Draft(x={"axis": "row", "dtype": "fp32", "shape": [4096]}), "x"
    for name in ("one", "two", "three"):
        if sparse:
            x = draft.add(name, "kronecker_linear", x, patterns=MONARCH_4096, activation="relu")
        else:
            x = draft.add(name, "linear", x, out_features=4096, activation="relu")
    return draft.graph(three={})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help=", ".join(NETWORKS))
    parser.add_argument("--precisions", nargs="+", type=Precision, default=["bf16", "fp16", "fp32"])
    parser.add_argument("--layers", type=int, help="instead of all blocks")
    parser.add_argument("--no-energy", dest="energy", action="store_false")
    parser.add_argument("--json", type=Path, help="append a line for each network here")
    options = parser.parse_args()
    if unknown := set(options.networks) - set(NETWORKS):
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    need_gpu()
    backend = CudaBackend()
    print(f"{backend.device.name}, torch {torch.__version__}")
    dense: dict[str, Any] = {}
    for precision in map(Precision, options.precisions):
        for case in cases(options.networks, options.layers):
            weights = random_weights(case.graph, seed=0)
            meter = Meter() if options.energy else None
            runs = [by_torch(case, precision, weights, meter), by_backend(backend, case, precision, weights, meter)]
            if not case.sparse:
                dense = min(runs, key=lambda run: run["ms"])
            for run in runs:
                print(line(run, dense), flush=True)
                if options.json:
                    with options.json.open("a") as file:
                        file.write(json.dumps(run) + "\n")
    backend.close()


def by_backend(
    backend: CudaBackend, case: Case, precision: Precision, weights: Weights, meter: Meter | None
) -> dict[str, Any]:
    """Compile, run and time one network by the CUDA backend; plain data."""
    program = backend.compile(case.graph, weights, Options(precision, max_cost=case.rows, initial_cost=case.rows))
    for _ in range(IN_FLIGHT):
        program.submit(batch_of(case)).result()  # so that every slot holds a batch
    parts = shares(case.graph, program.profile())
    replay = program._plans[-1]._slots[0]._graph.replay  # without what the host adds
    with torch.cuda.stream(program._device.stream):
        found = record(case, precision, "lacuna", replay, meter) | {"shares": parts}
    program.close()
    return found


def by_torch(case: Case, precision: Precision, weights: Weights, meter: Meter | None) -> dict[str, Any]:
    """The same network by torch, whose operations define what each op means."""
    dtype = DTYPES[precision]
    held = {name: weight.to("cuda", dtype) for name, weight in weights.items()}
    batch = {name: Value(value.data.to("cuda", dtype)) for name, value in batch_of(case).items()}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision is Precision.TF32
    with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        forward(case.graph, held, batch)
        with captured(lambda _: forward(case.graph, held, batch), copies=1) as replay:
            replay()
            return record(case, precision, "torch", replay, meter)


def forward(graph: Graph, weights: Weights, batch: Mapping[str, Value]) -> dict[str, Value]:
    """Node after node in the precision of weights and batch, values dropped after their last use."""
    context, values = Context(graph.types), dict(batch)
    last_use = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    for index, node in enumerate(graph.nodes):
        inputs = [values[name] for name in node.inputs]
        values[node.name] = node.reference(inputs, node_weights(weights, node), context)
        for name in {name for name in node.inputs if last_use[name] == index} - graph.outputs.keys():
            del values[name]
    return {name: values[name] for name in graph.outputs}


def batch_of(case: Case) -> dict[str, Value]:
    """Random inputs, on the host."""
    return {name: Value(torch.randn(case.rows, *kind.shape)) for name, kind in case.graph.input_value_types.items()}


def record(
    case: Case, precision: Precision, way: str, replay: Callable[[], None], meter: Meter | None
) -> dict[str, Any]:
    """Time and report one network, by the replays of its graph on the current stream."""
    ms = replayed_ms(replay)
    items = case.rows * case.per[1]
    found: dict[str, Any] = {
        "network": case.network,
        "linears": case.linears,
        "way": way,
        "precision": precision.value,
        "rows": case.rows,
        "per": case.per[0],
        "ms": ms,
        "us_per_item": 1e3 * ms / items,
        "parameters": sum(torch.Size(shape).numel() for shape in case.graph.weight_shapes().values()),
    }
    if meter is not None:
        energy = meter.measure(replay, 1, elapsed_ms(replay))
        found |= {"watts": energy.watts, "millijoules_per_item": 1e3 * energy.joules / items}
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in found.items()}


def replayed_ms(replay: Callable[[], None]) -> float:
    """Median time of one replay among several that follow each other."""
    replay()
    times = max(1, ceil(LEAST_MS / elapsed_ms(replay)))

    def several() -> None:
        for _ in range(times):
            replay()

    return median(elapsed_ms(several) / times for _ in range(REPEATS))


def shares(graph: Graph, steps: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Part of the time by op, what was fused into an op included; largest first."""
    op_of = {node.name: node.op for node in graph.nodes}
    for node in graph.nodes:  # a step has the name of the last node fused into it: an addition after a linear layer
        linear = [op_of[name] for name in node.inputs if op_of.get(name) in LINEARS]
        if node.op == "add" and linear:
            op_of[node.name] = linear[-1]
    spent: defaultdict[str, float] = defaultdict(float)
    for name, seconds in steps:
        spent[op_of.get(name, "other")] += seconds
    total, longest_first = sum(spent.values()), sorted(spent, key=spent.__getitem__, reverse=True)
    return {op: round(spent[op] / total, 3) for op in longest_first}


def line(found: dict[str, Any], dense: dict[str, Any]) -> str:
    """One network as a line, with how much faster and thriftier it is than the faster of its dense twins."""
    name = f"{found['network']} {found['precision']} {found['rows']} rows, {found['linears']}, {found['way']}"
    text = f"{name:56} {found['ms']:9.4f} ms {dense['ms'] / found['ms']:5.2f}x"
    text += f"  {found['us_per_item']:9.4g} us/{found['per']}"
    if "watts" in found:
        gain = found["millijoules_per_item"] / dense["millijoules_per_item"]
        text += (
            f"  {found['millijoules_per_item']:8.4g} mJ/{found['per']} ({gain:.2f} of dense, {found['watts']:.0f} W)"
        )
    parts = [f"{op} {100 * share:.0f} %" for op, share in found.get("shares", {}).items() if share > SMALL_SHARE]
    return ", ".join([f"{text}  {found['parameters'] / 1e6:.1f} M parameters", *parts])


if __name__ == "__main__":
    main()
