"""What U-shaped sparse-convolution networks for segmentation share: the stem, a level down, a level up, the outputs.

Laid out as in SPVNAS (arXiv 2007.16100) and TorchSparse (arXiv 2204.10319).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lacuna_kernels.graph import Graph
from lacuna_kernels.zoo.draft import Draft

MINKUNET_CHANNELS = (32, 32, 64, 128, 256, 256, 128, 96, 96)
"""Of the stem, of the four levels on the way down, of the four on the way up."""
LEVELS = 4
EPS = 1e-5
Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Site:
    """A value of the draft on the sites of a level, and its channels."""

    name: str
    channels: int


@dataclass(frozen=True, slots=True)
class Shape:
    """Channels of the stem and the eight levels, and residual blocks of the eight levels: four down, four up."""

    channels: tuple[int, ...]
    blocks: tuple[int, ...]

    @classmethod
    def of(cls, channels: Sequence[int], blocks: Sequence[int], width: float) -> "Shape":
        """All channels times `width`, rounded down. Raises ValueError if there are not nine, or not eight blocks."""
        if len(channels) != 2 * LEVELS + 1 or len(blocks) != 2 * LEVELS:
            raise ValueError(f"needs {2 * LEVELS + 1} channels and {2 * LEVELS} blocks, got {channels} and {blocks}")
        return cls(tuple(int(width * size) for size in channels), tuple(blocks))


def voxelized(
    columns: Sequence[str], voxel_size_m: float | tuple[float, float, float], reduce: str
) -> tuple[Draft, str]:
    """A draft of one input, points with these columns, and the name of their voxels."""
    voxel = [voxel_size_m] * 3 if isinstance(voxel_size_m, float | int) else list(voxel_size_m)
    draft = Draft(points={"axis": "point", "dtype": "fp32", "columns": list(columns)})
    return draft, draft.add("grid", "voxelize", "points", voxel_size_m=voxel, reduce=reduce)


def stem(draft: Draft, grid: str, shape: Shape) -> Site:
    """Two convolutions of the voxels."""
    x = draft.conv("stem1", grid, shape.channels[0], EPS, kernel_size=(3, 3, 3))
    return Site(draft.conv("stem2", x, shape.channels[0], EPS, kernel_size=(3, 3, 3)), shape.channels[0])


def down(draft: Draft, level: int, x: Site, shape: Shape) -> Site:
    """Half as many sites along each axis, then the blocks of level 1 to 4."""
    name = f"down{level}"
    y = draft.conv(name, x.name, x.channels, EPS, mode="strided", kernel_size=(2, 2, 2), stride=(2, 2, 2))
    return _blocks(draft, name, Site(y, x.channels), shape.channels[level], shape.blocks[level - 1])


def up(draft: Draft, level: int, x: Site, skip: Site, shape: Shape) -> Site:
    """Back on the sites of `skip`, which the channels are joined with, then the blocks of level 1 to 4, from below."""
    name, size = f"up{level}", shape.channels[LEVELS + level]
    y = draft.conv(name, x.name, size, EPS, mode="inverse", of=f"down{LEVELS + 1 - level}")
    y = draft.add(f"{name}_joined", "concat", y, skip.name)
    return _blocks(draft, name, Site(y, size + skip.channels), size, shape.blocks[LEVELS + level - 1])


def _blocks(draft: Draft, name: str, x: Site, channels: int, count: int) -> Site:
    for index in range(1, count + 1):
        y = draft.residual(f"{name}_block{index}", x.name, channels, EPS, shortcut=x.channels != channels)
        x = Site(y, channels)
    return x


def segmentation(
    draft: Draft, logits: str, told: dict[str, Any], colors: Sequence[Color] | None, *, scores: bool
) -> Graph:
    """The finished graph, whose outputs are the labels of the points and, if asked for, their scores.

    told  what outputs say of the classes, see class_names
    """
    draft.add("labels", "argmax", logits)
    outputs: dict[str, dict[str, Any]] = {"labels": told | ({} if colors is None else {"colors": list(colors)})}
    if scores:
        draft.add("scores", "softmax", logits)
        outputs["scores"] = told
    return draft.graph(**outputs)
