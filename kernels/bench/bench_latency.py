"""Latency of MinkUNet-42, or of a model folder, on LiDAR scans: what the device takes, and what a caller waits.

    python kernels/bench/bench_latency.py scan.bin [more.bin ...] [--model FOLDER] [--batch 8] [--steps] [--pageable]

A scan is fp32 x, y, z, intensity, as KITTI has it. Scans are run in turn, so that no run finds the last one's data.
"submit" is how long the host takes to hand a batch over, "host to host" what a caller waits. A GPU reads inputs from
pinned memory; with --pageable they lie in any memory, so that the host copies them first.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch

from bench.gpu import need_gpu, pinned
from bench.scans import read as read_scan
from lacuna_kernels import Batch, Model, Options, Precision, Value, collate, load_model, open_backend, random_weights
from lacuna_kernels.cuda.backend import CudaProgram
from lacuna_kernels.zoo import minkunet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path)
    parser.add_argument(
        "--model", type=Path, help="folder NAME/VERSION of a model; MinkUNet-42 with random weights by default"
    )
    parser.add_argument("--batch", type=int, default=1, help="scans at a time")
    parser.add_argument("--precision", type=Precision, default=Precision.FP16)
    parser.add_argument("--repeat", type=int, default=100)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--pageable", action="store_true", help="inputs that are not pinned, on a GPU")
    parser.add_argument("--steps", action="store_true", help="also time every step of the plan by itself")
    options = parser.parse_args()
    if options.device == "cuda":
        need_gpu()

    scans = itertools.cycle([batch_of(path) for path in options.scans])
    batches = [collate(list(itertools.islice(scans, options.batch))) for _ in options.scans]
    model = load_model(options.model) if options.model else random_minkunet()
    backend = open_backend(options.device)
    if options.device == "cuda" and not options.pageable:
        batches = [pinned(batch) for batch in batches]
    points = max(len(batch["points"].data) for batch in batches)
    start = time.perf_counter()
    program = backend.compile(
        model.graph, model.weights, Options(options.precision, initial_cost=points, max_cost=1 << 23)
    )
    name = options.model or "MinkUNet-42"
    precision = options.precision if options.device == "cuda" else Precision.FP32  # whatever is asked for
    print(f"{backend.device.name}, torch {torch.__version__}; {name}, {precision}, {options.batch} scans")
    print(f"compiled in {time.perf_counter() - start:.1f} s, {program.memory_bytes / 2**20:.0f} MiB")
    for batch in batches:
        program.submit(batch).result()
    busy, handed, waited = [], [], []
    for batch, _ in zip(itertools.cycle(batches), range(options.repeat), strict=False):
        start = time.perf_counter()
        pending = program.submit(batch)
        handed.append(time.perf_counter() - start)
        busy.append(pending.result().busy_seconds)
        waited.append(time.perf_counter() - start)
    print(row("device", busy), row("submit", handed), row("host to host", waited), sep="\n")
    if options.steps and isinstance(program, CudaProgram):
        time_steps(program, batches[0])
    program.close()
    backend.close()


def random_minkunet() -> Model:
    graph = minkunet(19)
    return Model(graph, random_weights(graph, 0))


def batch_of(path: Path) -> Batch:
    points = read_scan(path)
    return {"points": Value(points, torch.tensor([0, len(points)]))}


def row(name: str, seconds: list[float]) -> str:
    ms = sorted(1000 * value for value in seconds)
    return f"{name:13} median {statistics.median(ms):7.3f} ms   min {ms[0]:7.3f}   p95 {ms[int(0.95 * len(ms))]:7.3f}"


def time_steps(program: CudaProgram, batch: Batch) -> None:
    """Print what each step takes when it runs alone, longest first; a step of several launches includes the gaps."""
    program.submit(batch).result()
    for name, seconds in sorted(program.profile(), key=lambda item: -item[1]):
        print(f"{1e6 * seconds:9.1f} us  {name}")


if __name__ == "__main__":
    main()
