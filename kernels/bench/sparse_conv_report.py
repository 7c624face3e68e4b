"""The report of what was measured of sparse-convolution networks, made without a GPU."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from bench.kronecker_results import Results
from bench.sparse_conv_measure import STAGES
from bench.sparse_conv_plots import plot


@dataclass(frozen=True, slots=True)
class Row:
    """A cell in short: times in ms, of a batch where they are not of a cloud; None is what was not measured.

    busy    share of the time that the device computes while batches follow one another
    spconv  what the same takes it, a cloud; faster and frugal are how many times as much time and energy that is
    """

    network: str
    precision: str
    clouds: int
    points: int
    voxels: int
    device: float
    p90: float
    p99: float
    host_to_host: float
    a_cloud: float
    millijoules: float | None
    busy: float | None
    mib: int
    error: float
    spconv: float | None
    spconv_millijoules: float | None
    spconv_error: float | None
    faster: float | None
    frugal: float | None

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Row":
        """The row of a record."""
        device, clouds, theirs = record["device"], record["clouds"], record.get("spconv", {})
        joules, peer_joules = record.get("millijoules"), theirs.get("millijoules")
        peer = theirs["device"]["median"] / clouds if theirs else None
        a_cloud = device["median"] / clouds
        return cls(
            **{name: record[name] for name in ("network", "precision", "clouds", "points", "voxels", "error")},
            device=device["median"],
            p90=device["p90"],
            p99=device["p99"],
            host_to_host=record["host to host"]["median"],
            a_cloud=_short(a_cloud),
            millijoules=joules,
            busy=_short(device["median"] / record["ms in a row"]) if "ms in a row" in record else None,
            mib=record["MiB"],
            spconv=_short(peer) if peer else None,
            spconv_millijoules=peer_joules,
            spconv_error=theirs.get("error"),
            faster=_short(peer / a_cloud) if peer else None,
            frugal=_short(peer_joules / joules) if peer_joules and joules else None,
        )


HEADINGS = {
    "network": "network",
    "precision": "type",
    "clouds": "clouds",
    "voxels": "voxels",
    "device": "device",
    "p90": "p90",
    "p99": "p99",
    "host_to_host": "host to host",
    "a_cloud": "a cloud",
    "millijoules": "mJ a cloud",
    "busy": "busy",
    "mib": "MiB",
    "error": "error",
    "spconv": "spconv a cloud",
    "spconv_millijoules": "mJ",
    "spconv_error": "error",
    "faster": "faster",
    "frugal": "frugal",
}


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _table(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def head(results: Results) -> Iterator[str]:
    """Where it was measured, and on what."""
    yield from dict.fromkeys(map(_run, results.part("run")))


def _run(run: Mapping[str, Any]) -> str:
    peer = f", spconv {run['spconv']}" if run["spconv"] else ""
    scans = ", ".join(f"{points:,}" for points in run["points of the scans"])
    made = f"{run['key'][:16]} {run['device']}, torch {run['torch']}, CUDA {run['cuda']}{peer}"
    return f"{made}: {run['frames']} batches a cell, of scans of {scans} points"


def rows(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line a cell; ms, of a batch, medians on the device with p90 and p99."""
    told = [asdict(Row.of(record)) for record in records]
    yield from _table(
        [[*HEADINGS.values()], *(["" if row[name] is None else str(row[name]) for name in HEADINGS] for row in told)]
    )


def by_stage(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line a cell; ms of a batch, each stage by itself, so that their sum is more than the whole."""
    split = [record for record in records if "stages" in record]
    if not split:
        return
    lines = [[r["key"], *(str(r["stages"].get(stage, "")) for stage in STAGES)] for r in split]
    yield from _table([["ms by stage", *STAGES], *lines])


def report(results: Results, stem: Path) -> str:
    """Write STEM.txt, STEM.json and STEM_*.svg; return the tables."""
    records = results.part("cell")
    parts = [[*head(results)], [*rows(records)], [*by_stage(records)]]
    text = "\n".join(chain.from_iterable([*part, ""] for part in parts if part))
    stem.with_name(f"{stem.name}.txt").write_text(text)
    lines = [asdict(Row.of(record)) for record in records]
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(lines, indent=1) + "\n")
    plot(records, stem)
    return text
