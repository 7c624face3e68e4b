"""The report of a results file, made without a GPU."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from bench.kronecker_grid import LONG_ROOF_MS, ROWS
from bench.kronecker_plots import plot
from bench.kronecker_results import Results
from bench.kronecker_summary import long_records, summary
from bench.kronecker_tables import by_group, by_rows, choices, every_record, slowest


def head(results: Results) -> Iterator[str]:
    """Where it was measured, and how; what several runs measured is the last one's."""
    for run in results.part("run"):
        when, device = run["key"][:16], f"{run['device']}, torch {run['torch']}, CUDA {run['cuda']}"
        yield f"{when} {device}: {run['command']}"
    yield f"n = {ROWS}; patterns whose roof is over {1e3 * LONG_ROOF_MS:.0f} us, where nothing else is said"


def goals(results: Results) -> Iterator[str]:
    """The summary as a table."""
    lines = [(x.what, x.existing, x.ours, x.tuned, x.goal) for x in summary(results)]
    cells = [("", "existing", "ours", "tuned", "goal"), *lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def tables(results: Results) -> str:
    """The whole report as text, but for the single records."""
    parts = [[*lines(results)] for lines in (head, goals, by_group, by_rows, choices, slowest)]
    return "\n".join(chain.from_iterable([*part, ""] for part in parts if part))


def report(results: Results, stem: Path) -> str:
    """Write STEM.txt, STEM.json and STEM_*.svg; return the tables."""
    text = tables(results)
    stem.with_name(f"{stem.name}.txt").write_text(text + "\n" + "\n".join(every_record(results)) + "\n")
    lines = [asdict(line) for line in summary(results)]
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(lines, indent=1) + "\n")
    plot(long_records(results), stem)
    return text
