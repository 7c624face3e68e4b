"""SPVCNN: MinkUNet with a branch beside it that works on the points, so that detail finer than a voxel is kept.

Tang et al., arXiv 2007.16100.
"""

from collections.abc import Sequence

from lacuna_kernels.graph import Graph
from lacuna_kernels.zoo.draft import Draft, class_names
from lacuna_kernels.zoo.unet import (
    EPS,
    LEVELS,
    MINKUNET_CHANNELS,
    Color,
    Shape,
    Site,
    down,
    segmentation,
    stem,
    up,
    voxelized,
)


def spvcnn(
    classes: int | Sequence[str],
    channels: Sequence[int] = MINKUNET_CHANNELS,
    blocks: Sequence[int] = (2,) * 2 * LEVELS,
    *,
    columns: Sequence[str] = ("x", "y", "z", "intensity"),
    voxel_size_m: float | tuple[float, float, float] = 0.05,
    width: float = 1.0,
    reduce: str = "mean",
    colors: Sequence[Color] | None = None,
    scores: bool = False,
) -> Graph:
    """MinkUNet that goes through the points after the stem, the deepest level and the second and last level up.

    There the sites' features come to the points trilinearly; from the deepest level on what the points had before is
    added, by a linear layer, a batch norm and a relu. The network goes on with the points' means in each site, and a
    linear head gives every point its class. Arguments and errors are minkunet's.
    """
    shape = Shape.of(channels, blocks, width)
    draft, grid = voxelized(columns, voxel_size_m, reduce)
    first = stem(draft, grid, shape)
    points = draft.add("points0", "devoxelize", first.name, grid, mode="trilinear")
    x, left = _on_sites(draft, 0, points, first), [first]
    for level in range(1, LEVELS + 1):
        x = down(draft, level, x, shape)
        left.append(x)
    left.pop()
    points = _to_points(draft, 1, x, grid, points)
    x = _on_sites(draft, 1, points, x)
    for level in range(1, LEVELS + 1):
        x = up(draft, level, x, left.pop(), shape)
        if level == LEVELS // 2:
            points = _to_points(draft, 2, x, grid, points)
            x = _on_sites(draft, 2, points, x)
    points = _to_points(draft, 3, x, grid, points)
    count, told = class_names(classes)
    logits = draft.add("logits", "linear", points, out_features=count)
    return segmentation(draft, logits, told, colors, scores=scores)


def _on_sites(draft: Draft, turn: int, points: str, sites: Site) -> Site:
    return Site(draft.add(f"voxels{turn}", "point_to_voxel", points, sites.name), sites.channels)


def _to_points(draft: Draft, turn: int, x: Site, grid: str, points: str) -> str:
    """Features of the sites at the points, plus what these had before, transformed."""
    near = draft.add(f"points{turn}_near", "devoxelize", x.name, grid, mode="trilinear")
    own = draft.add(f"points{turn}_linear", "linear", points, out_features=x.channels)
    own = draft.add(f"points{turn}_norm", "batch_norm", own, eps=EPS)
    own = draft.add(f"points{turn}_relu", "relu", own)
    return draft.add(f"points{turn}", "add", near, own)
