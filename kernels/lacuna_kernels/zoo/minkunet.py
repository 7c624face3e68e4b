"""MinkUNet: a U-shaped sparse-convolution network that gives every point of a cloud a class.

Choy, Gwak and Savarese, arXiv 1904.08755; laid out as in SPVNAS (arXiv 2007.16100) and TorchSparse (arXiv 2204.10319).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lacuna_kernels.graph import Graph
from lacuna_kernels.zoo.draft import Draft, class_names

MINKUNET_CHANNELS = (32, 32, 64, 128, 256, 256, 128, 96, 96)
LEVELS = 4
EPS = 1e-5
Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Site:
    """A value of the draft and its channels."""

    name: str
    channels: int


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
    if len(channels) != 2 * LEVELS + 1 or len(blocks) != 2 * LEVELS:
        raise ValueError(f"needs {2 * LEVELS + 1} channels and {2 * LEVELS} blocks, got {channels} and {blocks}")
    sizes = [int(width * size) for size in channels]
    voxel = [voxel_size_m] * 3 if isinstance(voxel_size_m, float | int) else list(voxel_size_m)
    draft = Draft(points={"axis": "point", "dtype": "fp32", "columns": list(columns)})
    grid = draft.add("grid", "voxelize", "points", voxel_size_m=voxel, reduce=reduce)
    finest = _unet(draft, grid, sizes, blocks)
    count, told = class_names(classes)
    head = draft.add("head", "linear", finest, out_features=count)
    logits = draft.add("logits", "devoxelize", head, grid, mode="nearest")
    draft.add("labels", "argmax", logits)
    if not scores:
        return draft.graph(labels=told | _told("colors", colors))
    draft.add("scores", "softmax", logits)
    return draft.graph(labels=told | _told("colors", colors), scores=told)


def _told(key: str, values: Sequence[Color] | None) -> dict[str, list[Color]]:
    return {} if values is None else {key: list(values)}


def _unet(draft: Draft, grid: str, sizes: Sequence[int], blocks: Sequence[int]) -> str:
    x = draft.conv("stem1", grid, sizes[0], EPS, kernel_size=(3, 3, 3))
    x = draft.conv("stem2", x, sizes[0], EPS, kernel_size=(3, 3, 3))
    here, left = _Site(x, sizes[0]), []
    for level in range(1, LEVELS + 1):
        left.append(here)
        x = draft.conv(f"down{level}", here.name, here.channels, EPS, **_halving())
        here = _blocks(draft, f"down{level}", _Site(x, here.channels), sizes[level], blocks[level - 1])
    for level in range(1, LEVELS + 1):
        size, skip = sizes[LEVELS + level], left.pop()
        x = draft.conv(f"up{level}", here.name, size, EPS, mode="inverse", of=f"down{LEVELS + 1 - level}")
        x = draft.add(f"up{level}_joined", "concat", x, skip.name)
        here = _blocks(draft, f"up{level}", _Site(x, size + skip.channels), size, blocks[LEVELS + level - 1])
    return here.name


def _halving() -> dict[str, Any]:
    return {"mode": "strided", "kernel_size": (2, 2, 2), "stride": (2, 2, 2)}


def _blocks(draft: Draft, name: str, x: _Site, channels: int, count: int) -> _Site:
    for index in range(1, count + 1):
        y = draft.residual(f"{name}_block{index}", x.name, channels, EPS, shortcut=x.channels != channels)
        x = _Site(y, channels)
    return x
