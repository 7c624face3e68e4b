"""Tables and plots from a results file, without a GPU."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.kronecker_grid import LONG_ROOF_MS, ROWS, roof_ms
from bench.kronecker_measure import LARGEST_ERROR, OURS, Record
from bench.kronecker_plots import plot
from bench.kronecker_results import Results
from lacuna_kernels.cuda.kronecker.problem import Layout
from lacuna_kernels.graph import Precision

HALF = (Precision.FP16, Precision.BF16)
_CLOSE = 1.05
Where = Callable[[Record], bool]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the summary: what was measured and what is wanted."""

    what: str
    existing: str
    ours: str
    goal: str


def worst_tenth(values: Sequence[float]) -> float:
    """The value that nine tenths of the others reach."""
    return sorted(values)[len(values) // 10]


def long_records(results: Results) -> list[Record]:
    """The grid's records that measure the kernel and not its launch, ours and an existing way measured."""
    records = [Record.from_json(data) for data in results.part("grid") if data["rows"] == ROWS]
    return [r for r in records if roof_ms(r.problem) > LONG_ROOF_MS and r.ours_ms is not None and r.best is not None]


def summary(results: Results) -> list[Line]:
    """The lines of the goal, each from the records that there are."""
    records = long_records(results)
    first_d = _is(Layout.FIRST, HALF, lambda d: d > 1)
    last = _is(Layout.LAST, HALF)
    lines = [
        _fractions(
            "roof, first d > 1, fp16/bf16: median / worst tenth", filter(first_d, records), "0.70 / 0.45; 0.80 / 0.56"
        ),
        _fractions("roof, last, fp16/bf16: median / worst tenth", filter(last, records), "0.85 / 0.70"),
        _fractions(
            "roof, fp32 first: median / worst tenth", filter(_is(Layout.FIRST, (Precision.FP32,)), records), "0.80 / -"
        ),
        _fractions(
            "roof, fp32 last: median / worst tenth", filter(_is(Layout.LAST, (Precision.FP32,)), records), "0.80 / -"
        ),
        _speedups("speed-up, first d > 1, fp16/bf16: median", filter(first_d, records), median, "4x"),
        _speedups(
            "speed-up, first d > 1, fp32: median",
            filter(_is(Layout.FIRST, (Precision.FP32,), lambda d: d > 1), records),
            median,
            "4x",
        ),
        _speedups("speed-up, anywhere: worst", records, min, "0.97x"),
        *_joules(results),
        *_chains(results),
        *_errors(results),
    ]
    return [line for line in lines if line.ours]


def _is(layout: Layout, precisions: Sequence[Precision], d: Callable[[int], bool] = lambda d: True) -> Where:
    return lambda r: r.problem.layout is layout and r.problem.precision in precisions and d(r.problem.pattern.d)


def _fractions(what: str, records: Iterable[Record], goal: str) -> Line:
    chosen = list(records)
    if not chosen:
        return Line(what, "", "", goal)
    best = [roof_ms(r.problem) / _best_ms(r) for r in chosen]
    mine = [roof_ms(r.problem) / _ours_ms(r) for r in chosen]
    existing, ours = (f"{median(values):.2f} / {worst_tenth(values):.2f}" for values in (best, mine))
    return Line(f"{what} (n = {len(chosen)})", existing, ours, goal)


def _speedups(what: str, records: Iterable[Record], of: Callable[[list[float]], float], goal: str) -> Line:
    found = [_best_ms(r) / _ours_ms(r) for r in records]
    return Line(f"{what} (n = {len(found)})", "1", f"{of(found):.2f}x" if found else "", goal)


def _ours_ms(record: Record) -> float:
    assert record.ours_ms is not None
    return record.ours_ms


def _best_ms(record: Record) -> float:
    assert record.best is not None
    return record.best[1]


def _joules(results: Results) -> Iterator[Line]:
    goals = {
        (Layout.FIRST, Precision.FP16): "0.40",
        (Layout.FIRST, Precision.FP32): "0.45",
        (Layout.LAST, Precision.FP16): "0.95",
    }
    for (layout, precision), goal in goals.items():
        ratios = []
        for data in results.part("energy"):
            others = [way["joules"] for name, way in data["ways"].items() if name != OURS]
            if (data["layout"], data["precision"]) == (layout, precision) and others:
                ratios.append(data["ways"][OURS]["joules"] / min(others))
        d = " d > 1" if layout is Layout.FIRST else ""
        text = f"{median(ratios):.2f}" if ratios else ""
        yield Line(
            f"joules over the best existing, {layout}{d}, {precision}: median (n = {len(ratios)})", "1", text, goal
        )


def _chains(results: Results) -> Iterator[Line]:
    goals = {"gpt2-medium down": "100 us; 90", "monarch 4096": "140 us; 125"}
    for data in results.part("chains"):
        if data["precision"] == Precision.BF16 and data["rows"] == ROWS:
            us = {name: 1e3 * way["ms"] for name, way in data["ways"].items() if "ms" in way}
            best = min((us[name], name) for name in us if name != OURS)
            what = f"chain {data['chain']}, bf16 (floor {1e3 * data['fused_roof_ms']:.0f} us)"
            yield Line(what, f"{best[0]:.0f} us {best[1]}", f"{us[OURS]:.0f} us", goals.get(data["chain"], ""))


def _errors(results: Results) -> Iterator[Line]:
    for precision, goal in LARGEST_ERROR.items():
        ways = [d["ways"][OURS] for part in ("grid", "rows") for d in results.part(part)
                if d["precision"] == precision and "error" in d["ways"].get(OURS, {})]  # fmt: skip
        if ways:
            yield Line(
                f"largest relative error, {precision} (n = {len(ways)})", "", f"{worst_error(ways):.2g}", f"{goal:g}"
            )


def worst_error(ways: Sequence[dict[str, Any]]) -> float:
    """The largest error; not a number if one is."""
    errors = [float(way["error"]) for way in ways]
    return max(errors) if all(e == e for e in errors) else float("nan")  # noqa: PLR0124  not a number differs from itself


def by_group(results: Results) -> Iterator[str]:
    """Fractions of the roof by layout, d and precision, and who the fastest existing way was."""
    records = long_records(results)
    yield f"{'':27}  n  existing  worst tenth   ours  worst tenth  speed-up  worst  fastest existing"
    for layout in Layout:
        for name, d in (("d = 1", lambda d: d == 1), ("d > 1", lambda d: d > 1)):
            for precision in LARGEST_ERROR:
                chosen = list(filter(_is(layout, (precision,), d), records))
                if chosen:
                    yield f"{f'batch-size-{layout} {name} {precision}':27} {_group(chosen)}"


def _group(records: Sequence[Record]) -> str:
    best = [roof_ms(r.problem) / _best_ms(r) for r in records]
    mine = [roof_ms(r.problem) / _ours_ms(r) for r in records]
    gains = [m / b for m, b in zip(mine, best, strict=True)]
    who = Counter(r.best[0] for r in records if r.best)
    numbers = (median(best), worst_tenth(best), median(mine), worst_tenth(mine))
    columns = "{:9.2f} {:12.2f} {:6.2f} {:12.2f}".format(*numbers)
    names = ", ".join(f"{name} {count}" for name, count in who.most_common())
    return f"{len(records):3} {columns} {median(gains):8.2f}x {min(gains):5.2f}x  {names}"


def choices(results: Results) -> Iterator[str]:
    """Where the best guess was not the fastest of ours, if all of ours were measured; the costliest first."""
    misses = []
    for data in [*results.part("grid"), *results.part("rows")]:
        timed = {name: way["ms"] for name, way in data["ways"].items() if name.startswith(f"{OURS}: ") and "ms" in way}
        if len(timed) > 1:
            fastest, chosen = min(timed, key=timed.__getitem__), data["ways"][OURS]
            misses.append(
                (chosen["ms"] / timed[fastest], f"{data['key']}: {chosen['way']}, not {fastest[len(OURS) + 2 :]}")
            )
    if misses:
        ratios = [ratio for ratio, _ in misses]
        numbers = f"median {median(ratios):.3f}, worst {max(ratios):.2f} (n = {len(misses)})"
        yield f"best guess over the fastest of ours: {numbers}"
        yield from (f"  {ratio:.2f}  {text}" for ratio, text in sorted(misses, reverse=True)[:20] if ratio > _CLOSE)


def every_record(results: Results) -> Iterator[str]:
    """A line for each record."""
    for part in ("grid", "rows", "chains", "energy"):
        for data in results.part(part):
            yield summary_line(part, data)


def summary_line(part: str, data: dict[str, Any]) -> str:
    """One record as a line: milliseconds, or joules, of every way."""
    if part == "energy":
        ways = [f"{name} {1e3 * way['joules']:.4g} mJ ({way['watts']:.0f} W)" for name, way in data["ways"].items()]
        return f"energy {data['key']:34} {', '.join(ways)}"
    ways = [f"{name} {_way(way)}" for name, way in data["ways"].items()]
    ours = data["ways"].get(OURS, {})
    roof = data.get("fused_roof_ms", data["roof_ms"])
    fraction = (
        f"{roof / ours['ms']:.2f} of the roof ({ours.get('way', '')}, error {ours['error']:.1e})"
        if "ms" in ours
        else ""
    )
    return f"{part} {data['key']:34} roof {roof:.4f} ms: {', '.join(ways)}; ours {fraction}"


def _way(way: dict[str, Any]) -> str:
    return f"{way['ms']:.4g}" if "ms" in way else f"- ({way['skipped']})"


def tables(results: Results) -> str:
    """The whole report as text."""
    runs = results.part("run")
    lines = summary(results)
    widths = (
        [max(len(getattr(line, name)) for line in lines) for name in ("what", "existing", "ours")] if lines else [0] * 3
    )
    parts = [
        *(f"{run['device']}, torch {run['torch']}, CUDA {run['cuda']}: {run['command']}" for run in runs[-1:]),
        f"n = {ROWS}; patterns whose roof is over {1e3 * LONG_ROOF_MS:.0f} us, where nothing else is said",
        "",
        f"{'':{widths[0]}}  {'existing':{widths[1]}}  {'ours':{widths[2]}}  goal",
        *(f"{x.what:{widths[0]}}  {x.existing:{widths[1]}}  {x.ours:{widths[2]}}  {x.goal}" for x in lines),
        "",
        *by_group(results),
        "",
        *choices(results),
    ]
    return "\n".join(parts)


def report(results: Results, stem: Path) -> str:
    """Write STEM.txt, STEM.json and STEM_*.svg; return the tables."""
    text = tables(results)
    stem.with_suffix(".txt").write_text(text + "\n" + "\n".join(every_record(results)) + "\n")
    stem.with_suffix(".json").write_text(json.dumps([asdict(line) for line in summary(results)], indent=1) + "\n")
    plot(long_records(results), stem)
    return text
