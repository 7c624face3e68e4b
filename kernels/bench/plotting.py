"""Matplotlib, of the tools and not of what they measure: it is imported only to draw."""

import sys
from typing import Any


def pyplot(name: str) -> Any:
    """What plots are drawn with, to an SVG of this name: the same results give the same file. Exits without it."""
    try:
        import matplotlib as mpl  # noqa: PLC0415
    except ModuleNotFoundError:
        sys.exit("plots take matplotlib, which is in the extra `dev`: make .venv/.dev")

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = name
    from matplotlib import pyplot  # noqa: PLC0415

    return pyplot
