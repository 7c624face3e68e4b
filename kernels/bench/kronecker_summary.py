"""The goals, one line each, recomputed from a results file."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from bench.kronecker_grid import LONG_ROOF_MS, ROWS, roof_ms
from bench.kronecker_measure import LARGEST_ERROR, OURS, Record
from bench.kronecker_results import FAILED, Results
from lacuna_kernels.cuda.kronecker.problem import Layout
from lacuna_kernels.graph import Precision

FP32, HALF = (Precision.FP32,), (Precision.FP16, Precision.BF16)
FRACTION_GOALS = {
    ("first d > 1", HALF): "0.70 / 0.45; 0.80 / 0.56",
    ("last", HALF): "0.85 / 0.70",
    ("first", FP32): "0.80 / -",
    ("last", FP32): "0.80 / -",
}
SPEEDUP_GOALS = {("first d > 1", HALF): "4x", ("first d > 1", FP32): "4x"}
JOULE_GOALS = {
    (Layout.FIRST, Precision.FP16): "0.40",
    (Layout.FIRST, Precision.FP32): "0.45",
    (Layout.LAST, Precision.FP16): "0.95",
}
CHAIN_GOALS = {"gpt2-medium down": "100 us; 90", "monarch 4096": "140 us; 125"}


@dataclass(frozen=True, slots=True)
class Line:
    """What was measured, of the best existing way and of ours, by the rules and as tuned, and what is wanted."""

    what: str
    existing: str
    ours: str
    goal: str
    tuned: str = ""


def worst_tenth(values: Sequence[float]) -> float:
    """The value that nine tenths of the others reach."""
    return sorted(values)[len(values) // 10]


def compared(results: Results, part: str = "grid") -> list[Record]:
    """The records of a part in which both ours and an existing way were measured."""
    records = [Record.from_json(data) for data in results.part(part)]
    return [record for record in records if record.ours_ms is not None and record.best is not None]


def long_records(results: Results) -> list[Record]:
    """Those of the grid that measure the kernel and not its launch."""
    return [r for r in compared(results) if r.problem.rows == ROWS and roof_ms(r.problem) > LONG_ROOF_MS]


def gain(record: Record, tuned: bool = False) -> float:
    """How many times faster ours, or the fastest of ours, is than the fastest existing way."""
    mine = record.tuned_ms if tuned else record.ours_ms
    assert record.best is not None
    assert mine is not None
    return record.best[1] / mine


def fractions(records: Iterable[Record]) -> tuple[list[float], list[float], list[float]]:
    """Fractions of the roof that the fastest existing way reaches, ours, and the fastest of ours."""
    of_best = [(roof_ms(record.problem) / record.best[1], record) for record in records if record.best]
    return (
        [fraction for fraction, _ in of_best],
        [fraction * gain(record) for fraction, record in of_best],
        [fraction * gain(record, tuned=True) for fraction, record in of_best],
    )


def select(records: Iterable[Record], where: str, precisions: Sequence[Precision]) -> list[Record]:
    """Those of some precisions in a layout, such as "first" or "first d > 1"."""
    layout, _, d = where.partition(" ")
    of_d: dict[str, Callable[[int], bool]] = {"": lambda d: True, "d = 1": lambda d: d == 1, "d > 1": lambda d: d > 1}
    problems = [(record, record.problem) for record in records]
    return [r for r, p in problems if p.layout == layout and p.precision in precisions and of_d[d](p.pattern.d)]


def summary(results: Results) -> list[Line]:
    """The lines for which there are records."""
    records = long_records(results)
    lines = [_fraction_line(select(records, *of), *of, goal) for of, goal in FRACTION_GOALS.items()]
    lines += [_gain_line(select(records, *of), _named(*of), median, goal) for of, goal in SPEEDUP_GOALS.items()]
    lines += [_gain_line(records, "anywhere, worst", min, "0.97x"), *_joules(results), *_chains(results)]
    return [line for line in [*lines, *_errors(results), _failures(results)] if line.ours]


def _named(where: str, precisions: Sequence[Precision]) -> str:
    return f"{where}, {'/'.join(precisions)}"


def _fraction_line(records: Sequence[Record], where: str, precisions: Sequence[Precision], goal: str) -> Line:
    what = f"fraction of the roof, {_named(where, precisions)}, median / worst tenth (n = {len(records)})"
    existing, ours, tuned = (f"{median(f):.2f} / {worst_tenth(f):.2f}" if f else "" for f in fractions(records))
    return Line(what, existing, ours, goal, tuned)


def _gain_line(records: Sequence[Record], where: str, of: Callable[[list[float]], float], goal: str) -> Line:
    ours, tuned = (
        f"{of([gain(record, tuned) for record in records]):.2f}x" if records else "" for tuned in (False, True)
    )
    return Line(f"speed-up, {where} (n = {len(records)})", "1", ours, goal, tuned)


def _joules(results: Results) -> Iterator[Line]:
    for (layout, precision), goal in JOULE_GOALS.items():
        ratios = []
        for data in results.part("energy"):
            others = [way["joules"] for name, way in data["ways"].items() if name != OURS]
            if (data["layout"], data["precision"]) == (layout, precision) and others:
                ratios.append(data["ways"][OURS]["joules"] / min(others))
        what = f"joules over the best existing, {layout} d > 1, {precision}, median (n = {len(ratios)})"
        yield Line(what, "1", f"{median(ratios):.2f}" if ratios else "", goal)


def _chains(results: Results) -> Iterator[Line]:
    for data in results.part("chains"):
        if data["precision"] == Precision.BF16 and data["rows"] == ROWS:
            us = {name: 1e3 * way["ms"] for name, way in data["ways"].items()}
            best, name = min((us[name], name) for name in us if name != OURS)
            what = f"chain {data['chain']}, bf16 (one kernel's roof {1e3 * data['fused_roof_ms']:.0f} us)"
            yield Line(what, f"{best:.0f} us {name}", f"{us[OURS]:.0f} us", CHAIN_GOALS.get(data["chain"], ""))


def _errors(results: Results) -> Iterator[Line]:
    records = [*results.part("grid"), *results.part("rows")]
    for precision, goal in LARGEST_ERROR.items():
        mine = [way for d in records if d["precision"] == precision for way in Record.from_json(d).mine.values()]
        errors = [way["error"] for way in mine if "error" in way]
        if errors:
            what = f"largest relative error, {precision} (n = {len(errors)})"
            yield Line(what, "", f"{largest(errors):.2g}", f"{goal:g}")


def _failures(results: Results) -> Line:
    records = [Record.from_json(data) for part in ("grid", "rows") for data in results.part(part)]
    skipped = [record for record in records if any("skipped" in way for way in record.mine.values())]
    count = len(skipped) + len(results.part(FAILED))
    return Line("problems that ours failed at", "", str(count) if count else "", "0")


def largest(errors: Sequence[float]) -> float:
    """The largest; not a number if one is."""
    return max(errors, key=lambda error: float("inf") if error != error else error)  # noqa: PLR0124
