"""A picture of a labelled scan: from above, and as the sensor sees it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lacuna_client.simulate import CLASSES

Floats = NDArray[np.float32]
Labels = NDArray[np.integer]
Pixels = NDArray[np.uint8]
REACH_M, PIXELS_PER_M = 32.0, 16.0
DARK = 18


def draw(points: Floats, labels: Labels, colors: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Stack the view from above, the range view and a legend."""
    shades = np.asarray(colors, np.uint8)[labels]
    above, ahead = from_above(points, shades), from_sensor(points, shades, int(2 * REACH_M * PIXELS_PER_M))
    image = Image.fromarray(np.concatenate([above, ahead, np.full((26, ahead.shape[1], 3), DARK, np.uint8)]))
    pen = ImageDraw.Draw(image)
    for index, name in enumerate(CLASSES):
        x, y = 12 + index * 140, image.height - 20
        pen.rectangle((x, y, x + 12, y + 12), fill=tuple(colors[index]))
        pen.text((x + 20, y), name, fill="white")
    return image.quantize(64)


def from_above(points: Floats, shades: Pixels) -> Pixels:
    """Look down, the car's way up in the picture; what is higher covers what is lower."""
    size = int(2 * REACH_M * PIXELS_PER_M)
    rows = ((REACH_M - points[:, 0]) * PIXELS_PER_M).astype(int)
    columns = ((REACH_M - points[:, 1]) * PIXELS_PER_M).astype(int)
    seen = (rows >= 0) & (rows < size - 1) & (columns >= 0) & (columns < size - 1)
    order = np.argsort(points[:, 2])
    order = order[seen[order]]
    picture = np.full((size, size, 3), DARK, np.uint8)
    for down in (0, 1):
        for right in (0, 1):
            picture[rows[order] + down, columns[order] + right] = shades[order]
    return picture


def from_sensor(points: Floats, shades: Pixels, width: int, height: int = 200) -> Pixels:
    """Unroll the horizon, straight ahead in the middle; what is nearer covers what is further."""
    ranges = np.linalg.norm(points[:, :3], axis=1)
    elevation = np.degrees(np.arcsin(points[:, 2] / np.maximum(ranges, 1e-3)))
    columns = ((0.5 - np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi)) * (width - 1)).astype(int)
    rows = np.clip((3.0 - elevation) / 28.0 * (height - 4), 0, height - 4).astype(int)
    order = np.argsort(-ranges)
    picture = np.full((height, width, 3), DARK, np.uint8)
    for down in range(3):
        picture[rows[order] + down, columns[order]] = shades[order]
    return picture
