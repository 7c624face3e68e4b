"""MinkUNet: a U-shaped sparse-convolution network that gives every point of a cloud a class.

Choy, Gwak and Savarese, arXiv 1904.08755.
"""

from collections.abc import Sequence

from lacuna_kernels.graph import Graph
from lacuna_kernels.zoo.draft import class_names
from lacuna_kernels.zoo.unet import LEVELS, MINKUNET_CHANNELS, Color, Shape, down, segmentation, stem, up, voxelized


def minkunet(
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
    """Two convolutions, four levels down, four up with what the way down left, a linear head, back to the points.

    channels  of the stem, of the four levels on the way down, of the four on the way up
    blocks    residual blocks of each of these eight levels: two each are MinkUNet-18 and, with the default channels,
              what benchmarks call MinkUNet-42 (49 convolutions); (2, 3, 4, 6, 2, 2, 2, 2) are MinkUNet-34
    width     multiplies all channels, rounded down
    reduce    how the points of a voxel become its features: "mean" or "first"
    colors    red, green, blue of each class, for viewers
    scores    whether probabilities are an output too, besides the labels

    Raises ValueError if there are not nine channels or eight numbers of blocks.
    """
    shape = Shape.of(channels, blocks, width)
    draft, grid = voxelized(columns, voxel_size_m, reduce)
    x, left = stem(draft, grid, shape), []
    for level in range(1, LEVELS + 1):
        left.append(x)
        x = down(draft, level, x, shape)
    for level in range(1, LEVELS + 1):
        x = up(draft, level, x, left.pop(), shape)
    count, told = class_names(classes)
    head = draft.add("head", "linear", x.name, out_features=count)
    logits = draft.add("logits", "devoxelize", head, grid, mode="nearest")
    return segmentation(draft, logits, told, colors, scores=scores)
