"""Sparse-convolution networks end to end, on clouds that are new every time: from points to labels or features.

    python kernels/bench/bench_sparse_conv.py measure SCAN.bin [more.bin ...] [--frames 200] [--budget-seconds 500]
    python kernels/bench/bench_sparse_conv.py measure SCAN.bin --networks minkunet42 --batches 1 8 --precisions bf16
    python kernels/bench/bench_sparse_conv.py report

`measure` continues the results file: what is in it is not run again, so the whole may be run in pieces. `report` needs
no GPU: it writes tables, .json and plots beside the results file.

A scan is fp32 x, y, z, intensity, as KITTI has it; frames are made of the scans in turn (scans.py), clouds of
CenterPoint of ten sweeps of every tenth point. "device" is from the graph's first kernel to its last, by events, points
and labels on the device; "submit" how long the host takes to hand a batch over; "host to host" what a caller waits;
both from points in pinned memory.
Joules are the GPU's own counter while batches follow one another, two in flight. "error" is the relative L2 error of
scores or features of the first batch, against float64 (sparse_conv_error.py).

Where spconv is there it runs the same networks in fp16 on the same batches, from voxels that were made before; it has
no CUDA graph, and its "device" includes what waits for the host.
"""

import argparse
import datetime
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench.energy import Meter
from bench.gpu import need_gpu
from bench.kronecker_results import Results
from bench.progress import shown
from bench.scans import read
from bench.sparse_conv_cells import BATCHES, NETWORKS, WHOLE, Cell, batches_of, default_cells
from bench.sparse_conv_measure import peer_version, run_cell
from bench.sparse_conv_report import report
from lacuna_kernels import Precision, open_backend

RESULTS = Path(__file__).parent / "results" / "sparse_conv_h200.jsonl"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.command == "report":
        results = Results(options.results)
        if not results.part("cell"):
            sys.exit(f"there are no results at {options.results}: run measure first, on a GPU")
        print(report(results, options.results.with_suffix("")))
        return
    if options.device == "cuda":
        need_gpu()
    sys.exit(0 if measure(options) else 3)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("measure", "report"):
        command = commands.add_parser(name)
        command.add_argument("--results", type=_results, default=RESULTS, help="a .jsonl file, continued")
    command = commands.choices["measure"]
    command.add_argument("scans", nargs="+", type=Path)
    command.add_argument("--networks", nargs="+", choices=NETWORKS, help="these, in each type and size of batches")
    command.add_argument("--precisions", nargs="+", type=Precision, choices=list(Precision))
    command.add_argument("--batches", nargs="+", type=int, help="clouds at a time")
    command.add_argument("--frames", type=int, default=200, help="batches that are timed, each with clouds of its own")
    command.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    command.add_argument("--no-energy", action="store_true")
    command.add_argument("--budget-seconds", type=float, default=1e9, help="start nothing after this; exit status 3")
    return parser


def _results(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".jsonl":  # reports lie beside it, by the same name with other endings
        raise argparse.ArgumentTypeError(f"must end in .jsonl, got {text}")
    return path


def cells(options: argparse.Namespace) -> list[Cell]:
    """What the options ask for, or the default, which is not all that there could be."""
    if not (options.networks or options.precisions or options.batches):
        return default_cells()
    precisions = options.precisions or [Precision.FP16]
    return [Cell(*cell) for cell in product(options.networks or WHOLE, precisions, options.batches or BATCHES)]


def measure(options: argparse.Namespace) -> bool:
    """Measure what is missing until the budget is used up; return whether nothing is missing then."""
    start, results = time.monotonic(), Results(options.results)
    missing = [cell for cell in cells(options) if not results.has("cell", str(cell))]
    print(f"{len(missing)} to measure")
    scans = [read(path) for path in options.scans]
    backend = open_backend(options.device)
    meter = None if options.no_energy or options.device == "cpu" else Meter()
    results.add("run", _run_record(backend.device.name, [len(scan) for scan in scans], options.frames))
    try:
        for done, cell in enumerate(shown(missing, str)):
            if time.monotonic() - start > options.budget_seconds:
                print(f"the budget is used up: {len(missing) - done} are left")
                return False
            network = NETWORKS[cell.network]
            batches = [*batches_of(network, scans, cell.clouds, options.frames)]
            record = run_cell(backend, network, cell.precision, batches, meter)
            results.add("cell", {"key": str(cell), **asdict(cell), **record})
            print(line(results.get("cell", str(cell))), flush=True)
    finally:
        backend.close()
    return True


def _run_record(device: str, points: Sequence[int], frames: int) -> dict[str, Any]:
    return {
        "key": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "spconv": peer_version(),
        "points of the scans": list(points),
        "frames": frames,
    }


def line(record: Mapping[str, Any]) -> str:
    """A record in words."""
    parts = [f"{kind} {' / '.join(map(str, record[kind].values()))}" for kind in ("device", "submit", "host to host")]
    energy = f", {record['millijoules']} mJ a cloud" if "millijoules" in record else ""
    spent = ", ".join(f"{what} {ms}" for what, ms in record.get("stages", {}).items())
    peer = f"\n{'':28} spconv {record['spconv']}" if "spconv" in record else ""
    return (
        f"{record['key']:28} ms median / p90 / p99: {', '.join(parts)}; {record['MiB']} MiB{energy}, "
        f"error {record['error']}; {record['voxels']} voxels of {record['points']} points; {spent}{peer}"
    )


if __name__ == "__main__":
    main()
