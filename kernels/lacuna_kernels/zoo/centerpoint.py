"""The sparse encoder of CenterPoint, SpMiddleResNetFHD, and its neck (Yin, Zhou and Krähenbühl, arXiv 2006.11275)."""

from collections.abc import Sequence
from typing import Any

from lacuna_kernels.graph import Graph
from lacuna_kernels.types import Triple
from lacuna_kernels.zoo.draft import Draft

NUSCENES_RANGE_M = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
NUSCENES_COLUMNS = ("x", "y", "z", "intensity", "time")
CHANNELS = (16, 32, 64, 128)
NECK_CHANNELS = (128, 256)
"""As the original has them for nuScenes."""
_NECK_LAYERS = 5  # of a scale, after its first
EPS = 1e-3


def centerpoint_encoder(
    *,
    columns: Sequence[str] = NUSCENES_COLUMNS,
    voxel_size_m: tuple[float, float, float] = (0.075, 0.075, 0.2),
    range_m: tuple[float, float, float, float, float, float] = NUSCENES_RANGE_M,
    channels: Sequence[int] = CHANNELS,
    neck: Sequence[int] = (),
) -> Graph:
    """Voxels to features at an eighth of the resolution in x and y: output `features` [sites, channels[-1]].

    Axes are x, y, z here and z, y, x in the original. The grid has one cell more in z than the range holds, as there:
    41 cells become 21, 11, 5 and, after the last convolution, 2. A level after the first starts with a 3^3 convolution
    of stride 2; each has two residual blocks.

    neck  channels of the scales of a 2-D network on the bird's-eye view, such as NECK_CHANNELS; none: there is none.
          Each scale has half the resolution of the one before and six 3x3 convolutions. All are brought to the first
          one's resolution, which must halve so often, and to the last one's channels: output `neck`
          [n, scales * channels, y, x]
    """
    draft = Draft(points={"axis": "point", "dtype": "fp32", "columns": list(columns)})
    cells = [round((range_m[3 + axis] - range_m[axis]) / voxel_size_m[axis]) for axis in range(3)]
    shape = (cells[0], cells[1], cells[2] + 1)
    x = draft.add("grid", "voxelize", "points", voxel_size_m=voxel_size_m, range_m=range_m, spatial_shape=shape)
    x = draft.conv("stem", x, channels[0], EPS, kernel_size=(3, 3, 3))
    for level, size in enumerate(channels, 1):
        if level > 1:
            x = _strided(draft, f"down{level}", x, size, padding=(1, 1, 0 if level == len(channels) else 1))
        for block in (1, 2):
            x = draft.residual(f"level{level}_block{block}", x, size, EPS, shortcut=False, bias=True)
    flat: dict[str, Triple] = {"kernel_size": (1, 1, 3), "stride": (1, 1, 2)}
    y = draft.add("flatten", "sparse_conv", x, out_channels=channels[-1], mode="strided", **flat)
    x = draft.add("features", "relu", draft.add("flatten_norm", "batch_norm", y, eps=EPS))
    if not neck:
        return draft.graph(features={})
    _neck(draft, draft.add("bev", "sparse_to_bev", x), neck)
    return draft.graph(features={}, neck={})


def _neck(draft: Draft, x: str, channels: Sequence[int]) -> None:
    same: dict[str, Any] = {"kernel_size": (3, 3), "padding": (1, 1)}
    scales = []
    for scale, size in enumerate(channels):
        name, factor = f"scale{scale + 1}", 2**scale
        x = _image(draft, f"{name}_conv1", "conv2d", x, size, **same, stride=(2, 2) if scale else (1, 1))
        for layer in range(2, _NECK_LAYERS + 2):
            x = _image(draft, f"{name}_conv{layer}", "conv2d", x, size, **same)
        up: dict[str, Any] = {"kernel_size": (factor, factor), "stride": (factor, factor)}
        op = "conv_transpose2d" if scale else "conv2d"
        scales.append(_image(draft, f"{name}_up", op, x, channels[-1], **up))
    draft.add("neck", "concat", *scales)


def _image(draft: Draft, name: str, op: str, x: str, channels: int, **attributes: Any) -> str:
    """A dense convolution, its batch norm and a relu."""
    y = draft.add(name, op, x, out_channels=channels, bias=False, **attributes)
    return draft.add(f"{name}_relu", "relu", draft.add(f"{name}_norm", "batch_norm", y, eps=EPS))


def _strided(draft: Draft, name: str, x: str, channels: int, padding: Triple) -> str:
    attributes: dict[str, Any] = {"mode": "strided", "kernel_size": (3, 3, 3), "stride": (2, 2, 2), "padding": padding}
    return draft.conv(name, x, channels, EPS, **attributes)
