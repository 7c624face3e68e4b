"""One relational graph convolution on random graphs as large as those of the R-GCN paper, against other ways.

    python kernels/bench/bench_rgcn.py [--graphs aifb mutag bgs am] [--channels 16 64] [--precisions fp32 fp16]

Nodes, edges and relations are as many as in the data sets of arXiv 1703.06103, inverse edges included; sources and
targets are drawn evenly, relation k as often as 1 / (k + 1). "ours" is a whole plan, one CUDA graph, from the edges as
they came; what of it sorts edges, which layers that follow have for nothing, and what is the layer, is told beside it.
"torch" is the reference op. PyTorch Geometric's layers, if there is one, take edges as they came too, without a graph,
as they ask the device how many edges a relation has. Times are medians by CUDA events. Errors are the largest, of 64
thousand rows at most, by the root mean square of the result in float64.
"""

import argparse
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median
from types import ModuleType

import torch
from torch import Tensor

from bench.gpu import need_gpu
from bench.timing import elapsed_ms
from lacuna_kernels import (
    Backend,
    Batch,
    DeviceOutOfMemory,
    Graph,
    Options,
    Precision,
    Value,
    open_backend,
    parse_graph,
    random_weights,
)
from lacuna_kernels.cuda.backend import CudaProgram
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.model import node_weights
from lacuna_kernels.ops.context import Context

CHECKED_ROWS = 1 << 16
WARM_UP = 2
Work = Callable[[], Tensor]
Prepare = Callable[[], Work]


@dataclass(frozen=True, slots=True)
class Size:
    """A graph, with an inverse of each edge, whose relation is another."""

    nodes: int
    edges: int
    relations: int

    def __str__(self) -> str:
        return f"{self.nodes:,} nodes, {self.edges:,} edges, {self.relations} relations"


def with_inverses(nodes: int, edges: int, relations: int) -> Size:
    return Size(nodes, 2 * edges, 2 * relations)


SIZES = {
    "aifb": with_inverses(8_285, 29_043, 45),
    "mutag": with_inverses(23_644, 74_227, 23),
    "bgs": with_inverses(333_845, 916_199, 103),
    "am": with_inverses(1_666_764, 5_988_321, 133),
}


def random_graph(size: Size, channels: int, seed: int = 0) -> Batch:
    """Features of nodes and edges of a graph."""
    draw = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, size.nodes, (size.edges, 2), generator=draw)
    often = 1 / torch.arange(1, size.relations + 1)
    relation = torch.multinomial(often, size.edges, replacement=True, generator=draw)[:, None]
    x = torch.randn(size.nodes, channels, generator=draw)
    edges = torch.cat([ends, relation], 1).int()
    return {"nodes": Value(x, torch.tensor([0, len(x)])), "edges": Value(edges, torch.tensor([0, len(edges)]))}


def layer(size: Size, channels: int) -> Graph:
    """A network of one layer."""
    inputs = {
        "nodes": {"axis": "point", "shape": [channels]},
        "edges": {"axis": "edge", "nodes": "nodes", "relations": size.relations},
    }
    conv = {"name": "y", "op": "relational_graph_conv", "inputs": ["nodes", "edges"], "out_channels": channels}
    return parse_graph({"format": 1, "inputs": inputs, "nodes": [conv], "outputs": {"y": {}}})


@dataclass(frozen=True, slots=True)
class Case:
    """A layer, its weights, and what it is given: on a device, where others compute, and on the host."""

    graph: Graph
    weights: Mapping[str, Tensor]
    batch: Batch
    device: str

    def reference(self, dtype: torch.dtype) -> Work:
        """The reference op, in a type, on the device."""
        node, context = self.graph.nodes[0], Context(self.graph.types)
        weights = {name: w.to(self.device, dtype) for name, w in node_weights(self.weights, node).items()}
        inputs = [
            Value(
                value.data.to(self.device, dtype if value.data.is_floating_point() else None), offsets.to(self.device)
            )
            for value in self.batch.values()
            if (offsets := value.offsets) is not None
        ]
        return lambda: node.reference(inputs, weights, context).data

    def geometric(self, layer: type[torch.nn.Module], dtype: torch.dtype) -> Work:
        """A layer of PyTorch Geometric with the same weights."""
        relations, ci, co = self.weights["y.weight"].shape
        theirs = layer(ci, co, relations).to(self.device, dtype)
        with torch.no_grad():
            for name, own in theirs.named_parameters():
                own.copy_(self.weights[f"y.{name}"].to(own))
        x, edges = self.batch["nodes"].data.to(self.device, dtype), self.batch["edges"].data.long().to(self.device)
        ends, relation = edges[:, :2].T.contiguous(), edges[:, 2].contiguous()
        return lambda: theirs(x, ends, relation)

    def error(self, found: Tensor, expected: Tensor) -> float:
        """The largest error of some rows, by the root mean square of all that is expected."""
        rows = torch.linspace(0, len(found) - 1, min(len(found), CHECKED_ROWS)).long()
        off = found.cpu()[rows].double() - expected.cpu()[rows]
        return float(off.abs().max() / expected.square().mean().sqrt())


@dataclass(frozen=True, slots=True)
class Timed:
    """A way, its time, the largest error, and what there is to say of it."""

    way: str
    ms: float
    error: float
    note: str = ""

    def __str__(self) -> str:
        return f"  {self.way:24} {self.ms:9.3f} ms  error {self.error:.1e}  {self.note}".rstrip()


def ours(case: Case, backend: Backend, precision: Precision, repeat: int, expected: Tensor) -> Timed:
    """A whole plan, and its steps if there are such."""
    cost = max(len(value.data) for value in case.batch.values())
    program = backend.compile(case.graph, case.weights, Options(precision, max_cost=cost, initial_cost=cost))
    try:
        results = [program.submit(case.batch).result() for _ in range(WARM_UP + repeat)]
        ms = median(result.busy_seconds for result in results[WARM_UP:]) * 1000
        steps = program.profile() if isinstance(program, CudaProgram) else []
        note = ", ".join(f"{name} {seconds * 1000:.3f}" for name, seconds in steps)
        note += f"; {program.memory_bytes / 2**20:,.0f} MiB"
        return Timed(f"ours {precision}", ms, case.error(results[-1].values["y"].data, expected), note.lstrip("; "))
    finally:
        program.close()


def other(case: Case, way: str, work: Work, repeat: int, expected: Tensor) -> Timed:
    """Something that runs on the current stream."""
    with torch.no_grad():
        for _ in range(WARM_UP):
            y = work()
        error = case.error(y, expected)
        del y
        return Timed(way, median(elapsed_ms(work) for _ in range(repeat)), error)


def others(case: Case, precision: Precision, geometric: ModuleType | None) -> Iterator[tuple[str, Prepare]]:
    """Other ways, and what puts their operands on the device."""
    dtype = DTYPES[precision]
    yield f"torch {precision}", partial(case.reference, dtype)
    for name in ("RGCNConv", "FastRGCNConv") if geometric is not None else ():
        yield f"{name} {precision}", partial(case.geometric, getattr(geometric, name), dtype)


def run(case: Case, backend: Backend, precision: Precision, repeat: int, geometric: ModuleType | None) -> None:
    """Print a line a way; one that has no memory, or does not take the type, says so."""
    with torch.no_grad():
        expected = case.reference(torch.float64)()
    print(ours(case, backend, precision, repeat, expected))
    for way, prepare in others(case, precision, geometric):
        torch.cuda.empty_cache()
        try:
            print(other(case, way, prepare(), repeat, expected))
        except (torch.OutOfMemoryError, RuntimeError) as error:
            print(
                f"  {way:24} {'no memory' if isinstance(error, torch.OutOfMemoryError) else str(error).split('. ')[0]}"
            )


def pytorch_geometric() -> ModuleType | None:
    """Its layers, if it is installed."""
    try:
        return importlib.import_module("torch_geometric.nn")
    except ImportError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 64], help="in and out")
    parser.add_argument("--precisions", type=Precision, nargs="+", default=[Precision.FP32, Precision.FP16])
    parser.add_argument("--repeat", type=int, default=20)
    options = parser.parse_args()
    need_gpu()
    backend, geometric = open_backend("cuda"), pytorch_geometric()
    print(f"{backend.device.name}, torch {torch.__version__}{'' if geometric else '; no torch_geometric'}")
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, channels in product(options.graphs, options.channels):
        size = SIZES[name]
        graph = layer(size, channels)
        print(f"{name}: {size}, {channels} channels")
        case = Case(graph, random_weights(graph, 0), random_graph(size, channels), "cuda")
        for precision in options.precisions:
            try:
                run(case, backend, precision, options.repeat, geometric)
            except DeviceOutOfMemory as error:
                print(f"  {precision}: {error}")
    backend.close()


if __name__ == "__main__":
    main()
