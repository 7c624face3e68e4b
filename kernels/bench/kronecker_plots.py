"""Plots of a grid: speed-up against density, and fraction of the roof against bc/(b+c)."""

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.kronecker_grid import density, intensity
from bench.kronecker_measure import Record
from bench.kronecker_summary import fractions, gain
from bench.plotting import pyplot
from lacuna_kernels.cuda.kronecker.problem import Layout
from lacuna_kernels.graph import Precision

COLORS = {Precision.FP32: "#4e79a7", Precision.TF32: "#59a14f", Precision.FP16: "#f28e2b", Precision.BF16: "#e15759"}


def plot(records: Sequence[Record], stem: Path) -> None:
    """Write STEM_speedup.svg and STEM_roof.svg, a panel for each layout; nothing without records."""
    if not records:
        return
    _draw(
        records,
        stem.with_name(f"{stem.name}_speedup.svg"),
        ("density 1/(ad)", "times the fastest existing way"),
        lambda r: density(r.problem.pattern),
        gain,
        1.0,
    )
    _draw(
        records,
        stem.with_name(f"{stem.name}_roof.svg"),
        ("bc/(b+c)", "fraction of the roof"),
        lambda r: intensity(r.problem.pattern),
        lambda r: fractions([r])[1][0],
        None,
    )


def _draw(
    records: Sequence[Record],
    path: Path,
    labels: tuple[str, str],
    x: Callable[[Record], float],
    y: Callable[[Record], float],
    line: float | None,
) -> None:
    drawn = pyplot(path.name)
    figure, panels = drawn.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for panel, layout in zip(panels, Layout, strict=True):
        for precision, color in COLORS.items():
            chosen = [r for r in records if r.problem.layout is layout and r.problem.precision is precision]
            panel.scatter([*map(x, chosen)], [*map(y, chosen)], s=14, alpha=0.7, color=color, label=str(precision))
        limits = (0.8 * min(map(x, records)), 1.25 * max(map(x, records)))
        panel.set(title=f"batch-size-{layout}", xscale="log", xlim=limits, xlabel=labels[0])
        if line is None:
            panel.set_ylim(0, 1.05)
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter("{x:g}")
        else:
            panel.set_yscale("log", base=2)
            panel.set_ylim(0.8 * min(map(y, records)), 1.25 * max(map(y, records)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.axhline(line, color="black", linewidth=0.8)
    panels[0].set_ylabel(labels[1])
    panels[1].legend(loc="best", frameon=False)
    figure.savefig(path, metadata={"Date": None})
    drawn.close(figure)
