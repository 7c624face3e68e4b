"""Measure Kronecker-sparse factors on a GPU, ours against everything that exists, and report.

    python kernels/bench/bench_kronecker.py measure [--quick] [--parts grid rows chains energy] [--budget-seconds 500]
    python kernels/bench/bench_kronecker.py measure --patterns 48,48,1,128 --rows 25088 --precisions fp16 --candidates
    python kernels/bench/bench_kronecker.py report

`measure` continues the results file: what is in it is not run again, so the whole may be run in pieces. Times are
medians over CUDA events, of graphs where launches are short; operands are rotated past the second-level cache; every
result is poisoned first and then compared with float64. `report` needs no GPU.

Parts: grid (a random sample of the grid of arXiv 2405.15013), rows (few rows), chains, and energy (joules, of ours and
of the fastest existing way that `grid` found).
"""

import argparse
import datetime
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import kronecker_chains as chains
from bench.energy import Meter
from bench.gpu import need_gpu
from bench.kronecker_grid import (
    FEW_PATTERNS,
    LONG_ROOF_MS,
    PATTERNS,
    PRECISIONS,
    ROWS,
    SMALL_ROWS,
    key,
    patterns,
    problems,
    roof_ms,
)
from bench.kronecker_lazylinop import available, compile_all
from bench.kronecker_measure import OURS, Record, measure, ways_of
from bench.kronecker_report import report
from bench.kronecker_results import FAILED, Results
from bench.kronecker_tables import record_line
from bench.kronecker_ways import Operands
from bench.progress import shown
from bench.timing import captured, copies_of, elapsed_ms
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern

RESULTS = Path(__file__).parent / "results" / "kronecker_h200.jsonl"
PARTS = ("grid", "rows", "chains", "energy")
ENERGY = ((Precision.FP16, Layout.FIRST), (Precision.FP32, Layout.FIRST), (Precision.FP16, Layout.LAST))


@dataclass(frozen=True, slots=True)
class Job:
    """One record to make: its part and key, and how."""

    part: str
    key: str
    run: Callable[[], dict[str, Any]]


def main() -> None:
    options = _parser().parse_args()
    if options.command == "report":
        if not options.results.is_file():
            sys.exit(f"there are no results at {options.results}: run measure first, on a GPU")
        print(report(Results(options.results), options.results.with_suffix("")))
        return
    need_gpu()
    device = Device()
    with torch.cuda.stream(device.stream), torch.no_grad():
        complete = _measure(device, options)
    device.close()
    sys.exit(0 if complete else 3)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("measure", "report"):
        command = commands.add_parser(name)
        command.add_argument("--results", type=_results, default=RESULTS, help="a .jsonl file, continued")
    command = commands.choices["measure"]
    command.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    command.add_argument("--quick", action="store_true", help=f"{FEW_PATTERNS} patterns of the grid")
    command.add_argument("--count", type=int, default=PATTERNS, help="patterns of the grid")
    command.add_argument("--patterns", nargs="+", type=_pattern, metavar="A,B,C,D", help="these instead of a sample")
    command.add_argument("--rows", type=int, default=ROWS, help="of the grid")
    command.add_argument("--precisions", nargs="+", type=Precision, choices=PRECISIONS, default=PRECISIONS)
    command.add_argument("--layouts", nargs="+", type=Layout, choices=list(Layout), default=list(Layout))
    command.add_argument(
        "--ways",
        nargs="+",
        default=(),
        help="only these, such as: ours 'strided bmm' (the others stay missing: use --results)",
    )
    command.add_argument("--candidates", action="store_true", help="also time those that `lacuna tune` would")
    command.add_argument("--budget-seconds", type=float, default=1e9, help="start nothing after this; exit status 3")
    return parser


def _results(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".jsonl":  # reports lie beside it, by the same name with other endings
        raise argparse.ArgumentTypeError(f"must end in .jsonl, got {text}")
    return path


def _pattern(text: str) -> KSPattern:
    a, b, c, d = map(int, text.split(","))
    return KSPattern(a, b, c, d)


def _measure(device: Device, options: argparse.Namespace) -> bool:
    """Run what is missing until the budget is used up; return whether nothing is missing then."""
    start, results = time.monotonic(), Results(options.results)
    results.add("run", _run_record(device))
    missing = [job for job in _jobs(device, results, options) if not results.has(job.part, job.key)]
    missing = [job for job in missing if not results.has(FAILED, f"{job.part} {job.key}")]
    print(f"{len(missing)} to measure")
    for done, job in enumerate(shown(missing, lambda job: f"{job.part} {job.key}")):
        if time.monotonic() - start > options.budget_seconds:
            print(f"the budget is used up: {len(missing) - done} are left")
            return False
        try:
            record = job.run()
        except Exception as error:  # what a process cannot survive is not tried again by the next
            results.add(FAILED, {"key": f"{job.part} {job.key}", "error": repr(error)[:300]})
            raise
        results.add(job.part, record)
        print(record_line(job.part, record), flush=True)
    return True


def _run_record(device: Device) -> dict[str, Any]:
    return {
        "key": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device.properties.name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "command": shlex.join(sys.argv),
    }


def _jobs(device: Device, results: Results, options: argparse.Namespace) -> Iterator[Job]:
    """All records that the options ask for."""
    few = options.patterns or patterns(FEW_PATTERNS)
    chosen = few if options.quick else options.patterns or patterns(options.count)
    of_part = {
        "grid": problems(chosen, [options.rows], options.precisions, options.layouts),
        "rows": problems(few, SMALL_ROWS, options.precisions, options.layouts),
    }
    wanted = {part: of_part[part] for part in options.parts if part in of_part}
    if available() and (not options.ways or "lazylinop" in options.ways):
        todo = [p for part, found in wanted.items() for p in found if not results.has(part, key(p))]
        begun = time.monotonic()
        print(f"lazylinop: {compile_all(device, todo)} kernels compiled in {time.monotonic() - begun:.0f} s")
    for part, found in wanted.items():
        for problem in found:
            yield Job(part, key(problem), partial(_grid_job, device, problem, options))
    if "chains" in options.parts:
        for name in chains.CHAINS:
            for precision in options.precisions:
                run = partial(chains.measure, device, name, precision)
                yield Job("chains", chains.key(name, precision, ROWS), run)
    if "energy" in options.parts:
        for problem in _energy_problems(options):
            yield Job("energy", key(problem), partial(_energy_job, device, problem, results))


def _grid_job(device: Device, problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    return measure(device, problem, options.ways, options.candidates).as_json()


def _energy_problems(options: argparse.Namespace) -> list[Problem]:
    """A dozen patterns, long ones with d > 1, as the figures are about."""
    half = [Problem(pattern, ROWS, Precision.FP16) for pattern in options.patterns or patterns(options.count)]
    long = [problem.pattern for problem in half if problem.pattern.d > 1 and roof_ms(problem) > LONG_ROOF_MS]
    return [Problem(pattern, ROWS, *kind) for pattern in long[:FEW_PATTERNS] for kind in ENERGY]


def _energy_job(device: Device, problem: Problem, results: Results) -> dict[str, Any]:
    """Joules of ours and of the fastest existing way, which is looked up or measured."""
    if results.has("grid", key(problem)):
        record = Record.from_json(results.get("grid", key(problem)))
    else:
        record = measure(device, problem)
    best, meter = record.best, Meter()
    torch.backends.cuda.matmul.allow_tf32 = problem.precision is Precision.TF32
    operands = Operands.random(problem, copies_of(problem.bytes))
    ways = ways_of(device, problem)
    found: dict[str, Any] = {}
    for name in [OURS] if best is None else [OURS, best[0]]:
        multiply, copies = ways[name](operands), len(operands.xs)
        multiply(0)
        with captured(multiply, copies) as replay:
            replay()
            energy = meter.measure(replay, copies, elapsed_ms(replay))
        found[name] = {what: float(f"{value:.5g}") for what, value in asdict(energy).items()}
    return record.as_json() | {"ways": found}


if __name__ == "__main__":
    main()
