"""Plots of sparse-convolution networks beside spconv, by size of batches: time of a cloud by stage, and joules."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.plotting import pyplot
from lacuna_kernels import Precision

COLORS = {
    "voxels": "#76b7b2",
    "sites and maps": "#59a14f",
    "convolutions": "#4e79a7",
    "points": "#edc948",
    "neck": "#b07aa1",
    "head": "#f28e2b",
    "others": "#9c755f",
}
OURS, PEER = "#4e79a7", "#bab0ac"
_WIDTH = 0.38
Record = dict[str, Any]


def plot(records: Sequence[Record], stem: Path) -> None:
    """Write STEM_time.svg and STEM_energy.svg, a panel for each network in fp16; what has no records is left out."""
    half = [record for record in records if record["precision"] == Precision.FP16]
    timed = [record for record in half if "stages" in record]
    _draw(timed, stem.with_name(f"{stem.name}_time.svg"), "ms a cloud", _time)
    metered = [record for record in half if "millijoules" in record]
    _draw(metered, stem.with_name(f"{stem.name}_energy.svg"), "mJ a cloud", _energy)


def _time(panel: Any, place: float, record: Record) -> None:
    """Stages on top of one another, the whole as it is served as a mark, and spconv beside."""
    clouds, bottom = record["clouds"], 0.0
    for stage, ms in record["stages"].items():
        panel.bar(place, ms / clouds, _WIDTH, bottom, color=COLORS[stage], label=stage)
        bottom += ms / clouds
    whole = record["device"]["median"] / clouds
    panel.scatter([place], [whole], marker="_", s=240, color="black", zorder=3, label="all in one graph")
    if "spconv" in record:
        _peer(panel, place, record["spconv"]["device"]["median"] / clouds)


def _energy(panel: Any, place: float, record: Record) -> None:
    """Ours, and spconv beside."""
    panel.bar(place, record["millijoules"], _WIDTH, color=OURS, label="Lacuna")
    if "millijoules" in record.get("spconv", {}):
        _peer(panel, place, record["spconv"]["millijoules"])


def _peer(panel: Any, place: float, height: float) -> None:
    panel.bar(place + _WIDTH, height, _WIDTH, color=PEER, label="spconv")


def _draw(records: Sequence[Record], path: Path, label: str, bars: Callable[[Any, float, Record], None]) -> None:
    if not records:
        return
    drawn = pyplot(path.name)
    networks = [*dict.fromkeys(record["network"] for record in records)]
    of = {name: sorted((r for r in records if r["network"] == name), key=lambda r: r["clouds"]) for name in networks}
    widths = [max(2, len(own)) for own in of.values()]
    figure, panels = drawn.subplots(
        1,
        len(networks),
        figsize=(3 + 1.1 * sum(widths), 4.2),
        width_ratios=widths,
        squeeze=False,
        layout="constrained",
    )
    told: dict[str, Any] = {}
    for panel, (name, own) in zip(panels[0], of.items(), strict=True):
        for place, record in enumerate(own):
            bars(panel, place, record)
        panel.set_xticks([place + _WIDTH / 2 for place in range(len(own))], [str(r["clouds"]) for r in own])
        panel.set(title=name, xlabel="clouds at a time", xlim=(-0.6, len(own) - 1 + 1.0))
        handles, labels = panel.get_legend_handles_labels()
        told |= dict(zip(labels, handles, strict=True))
    panels[0][0].set_ylabel(label)
    figure.legend([*told.values()], [*told], loc="outside right center", frameon=False)
    figure.savefig(path, metadata={"Date": None})
    drawn.close(figure)
