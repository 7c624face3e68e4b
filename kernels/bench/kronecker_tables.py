"""Tables of a results file: by group, by rows, what is slow, and every record."""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from bench.kronecker_grid import SMALL_ROWS, key
from bench.kronecker_measure import LARGEST_ERROR, OURS, Record
from bench.kronecker_results import Results
from bench.kronecker_summary import compared, fractions, gain, long_records, select, worst_tenth
from lacuna_kernels.cuda.kronecker.problem import Layout

_CLOSE = 1.05
_SOME = 20


def by_group(results: Results) -> Iterator[str]:
    """Fractions of the roof by layout, d and precision, and who the fastest existing way was."""
    records = long_records(results)
    yield f"{'':27}   n  existing  worst tenth   ours  worst tenth  speed-up  worst  fastest existing"
    for where in (f"{layout} {d}" for layout in Layout for d in ("d = 1", "d > 1")):
        for precision in LARGEST_ERROR:
            chosen = select(records, where, [precision])
            if chosen:
                yield f"{f'batch-size-{where} {precision}':27} {_group(chosen)}"


def _group(records: Sequence[Record]) -> str:
    (best, mine, _), gains = fractions(records), [*map(gain, records)]
    who = Counter(record.best[0] for record in records if record.best)
    columns = f"{median(best):9.2f} {worst_tenth(best):12.2f} {median(mine):6.2f} {worst_tenth(mine):12.2f}"
    names = ", ".join(f"{name} {count}" for name, count in who.most_common())
    return f"{len(records):3} {columns} {median(gains):8.2f}x {min(gains):5.2f}x  {names}"


def by_rows(results: Results) -> Iterator[str]:
    """Speed-ups over the fastest existing way at few rows."""
    records = compared(results, "rows")
    for rows in SMALL_ROWS if records else ():
        parts = []
        for layout in Layout:
            for precision in LARGEST_ERROR:
                some = [record for record in records if record.problem.rows == rows]
                gains = [*map(gain, select(some, layout, [precision]))]
                if gains:
                    parts.append(f"{layout} {precision} {median(gains):.2f}x (worst {min(gains):.2f}x)")
        yield f"{rows:5} rows: {', '.join(parts)}"


def slowest(results: Results) -> Iterator[str]:
    """Where ours gains least, and where it is furthest from the roof."""
    records = long_records(results)
    if not records:
        return
    yield "least gain over the fastest existing way"
    for record in sorted(records, key=gain)[:_SOME]:
        yield f"  {gain(record):5.2f}x  {key(record.problem):34} {_way_of(record)}"
    yield "furthest from the roof"
    of_roof = {key(record.problem): fractions([record])[1][0] for record in records}
    for record in sorted(records, key=lambda record: of_roof[key(record.problem)])[:_SOME]:
        yield f"  {of_roof[key(record.problem)]:5.2f}   {key(record.problem):34} {_way_of(record)}"


def _way_of(record: Record) -> str:
    best = record.best[0] if record.best else ""
    return f"{record.ways[OURS].get('way', '')}, against {best}"


def choices(results: Results) -> Iterator[str]:
    """Where the best guess was not the fastest of ours, if others of ours were measured; the costliest first."""
    misses = []
    for data in [*results.part("grid"), *results.part("rows")]:
        mine = Record.from_json(data).mine
        others = {name: way["ms"] for name, way in mine.items() if name != OURS and "ms" in way}
        chosen = mine.get(OURS, {})
        if others and "ms" in chosen:
            fastest = min(others, key=others.__getitem__)
            text = f"{data['key']}: {chosen['way']}, not {fastest.removeprefix(f'{OURS}: ')}"
            misses.append((max(1.0, chosen["ms"] / others[fastest]), text))
    if misses:
        ratios = [ratio for ratio, _ in misses]
        numbers = f"median {median(ratios):.3f}, worst {max(ratios):.2f} (n = {len(misses)})"
        yield f"best guess over the fastest of ours: {numbers}"
        yield from (f"  {ratio:.2f}  {text}" for ratio, text in sorted(misses, reverse=True)[:_SOME] if ratio > _CLOSE)


def every_record(results: Results) -> Iterator[str]:
    """A line for each record."""
    for part in ("grid", "rows", "chains", "energy"):
        for data in results.part(part):
            yield record_line(part, data)


def record_line(part: str, data: dict[str, Any]) -> str:
    """One record as a line: milliseconds, or joules, of every way."""
    if part == "energy":
        ways = [f"{name} {1e3 * way['joules']:.4g} mJ ({way['watts']:.0f} W)" for name, way in data["ways"].items()]
        return f"energy {data['key']:34} {', '.join(ways)}"
    ways = [f"{name} {_way(way)}" for name, way in data["ways"].items()]
    roof = data.get("fused_roof_ms", data["roof_ms"])
    text = f"{part} {data['key']:34} roof {roof:.4f} ms: {', '.join(ways)}"
    ours = data["ways"].get(OURS, {})
    if "ms" not in ours:
        return text
    return f"{text}; ours {roof / ours['ms']:.2f} of the roof ({ours.get('way', '')}, error {ours['error']:.1e})"


def _way(way: dict[str, Any]) -> str:
    return f"{way['ms']:.4g}" if "ms" in way else f"- ({way['skipped']})"
