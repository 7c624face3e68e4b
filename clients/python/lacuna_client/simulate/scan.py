"""One scan of one random street: cast all rays, then lose, blur and shade the returns as a real sensor does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lacuna_client.simulate.furnish import random_scene
from lacuna_client.simulate.hits import Hits, cast, cast_ground, random_pavement
from lacuna_client.simulate.lidar import Lidar, Rays, random_rays
from lacuna_client.simulate.shapes import Floats
from lacuna_client.simulate.street import StreetStyle

Rng = np.random.Generator
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scan:
    """A labelled point cloud.

    points  float32 [n, 4]  x (ahead), y (left), z (up) in metres from the sensor; intensity 0..1
    labels  uint8 [n]       index into CLASSES
    """

    points: NDArray[np.float32]
    labels: NDArray[np.uint8]


def simulate_scan(seed: int, lidar: Lidar | None = None, style: StreetStyle | None = None) -> Scan:
    """Drive through a random street and take one scan; the same seed gives the same bits.

    Returns about 120,000 points, row of beams by row of beams from the top one down, as KITTI stores them.
    """
    lidar, style = lidar or Lidar(), style or StreetStyle()
    rng = np.random.default_rng(seed)
    scene = random_scene(rng, style)
    rays = random_rays(rng, lidar)
    hits = Hits.none(rays.way.x.shape)
    for shape in scene.shapes:
        cast(rng, rays, shape, hits)
    cast_ground(rng, rays, scene.ground, random_pavement(rng), hits)
    kept = returning(rng, rays, hits, lidar)
    beams = kept.sum(axis=1)
    distance = blurred(rng, hits.distance[kept], beams, lidar)
    own = [axis[kept] * distance for axis in rays.own]
    points = np.stack([*own, shaded(rng, hits, kept, lidar)], axis=1, dtype=np.float32)
    return Scan(points, hits.label[kept])


def returning(rng: Rng, rays: Rays, hits: Hits, lidar: Lidar) -> Mask:
    """Which hits send enough light back: dark, grazed and distant ones do not, nor the sensor's own car."""
    near = np.clip(hits.distance, 0.1, 1e4)
    strength = hits.reflectance * (0.02 + hits.cosine) * np.minimum(1, (25 / near) ** 2)
    lost = hits.dropout + np.exp(-lidar.sensitivity * strength) + np.float32(lidar.dropout)
    kept: Mask = (streaks(rng, near.shape) >= lost) & (near < lidar.reach_m) & (near > lidar.nearest_m)
    return kept & ~car_body(rng, rays)


def streaks(rng: Rng, shape: tuple[int, ...]) -> Floats:
    """Uniform numbers 0..1 that mostly stay the same over a dozen neighbours in a row: beams are lost in runs."""
    rows, columns = shape
    runs = np.repeat(rng.random((rows, columns // 12 + 1), np.float32), 12, axis=1)[:, :columns]
    single = rng.random(shape, np.float32)
    return np.where(rng.random(shape, np.float32) < 0.7, runs, single)


def blurred(rng: Rng, distance: Floats, beams: NDArray[np.int64], lidar: Lidar) -> Floats:
    """Ranges as measured: noise of each shot, and a bias of each beam that calibration has left."""
    bias = np.repeat(rng.normal(0, lidar.beam_bias_m, len(beams)).astype(np.float32), beams)
    return distance + bias + rng.standard_normal(distance.shape, np.float32) * np.float32(lidar.range_noise_m)


def shaded(rng: Rng, hits: Hits, kept: Mask, lidar: Lidar) -> Floats:
    """Intensities as reported: in steps of 0.01, some beams much duller than the others, a few shots near 0."""
    rows, columns = kept.shape
    gain = np.clip(rng.normal(1, 0.08, rows), 0.7, 1.2)
    gain[rng.random(rows) < 0.1] *= 0.5
    stain = np.repeat(rng.normal(1, 0.12, (rows // 4, columns // 30 + 1)), 30, axis=1)[:, :columns].repeat(4, axis=0)
    light = (hits.reflectance * gain[:, None].astype(np.float32) * stain.astype(np.float32))[kept]
    light *= 0.75 + 0.25 * np.minimum(hits.cosine[kept], 1)
    light += rng.standard_normal(light.shape, np.float32) * hits.roughness[kept]
    light[rng.random(light.shape, np.float32) < lidar.dull] *= 0.1
    intensity: Floats = np.round(np.clip(light, 0, np.float32(0.99)), 2)
    return intensity


def car_body(rng: Rng, rays: Rays) -> Mask:
    """Rays that end on the sensor's own car: its bonnet and its rear to either side, and what the roof carries."""
    columns = rays.way.x.shape[1]
    azimuth = np.arange(columns, dtype=np.float32) * np.float32(2 * np.pi / columns)
    elevation = np.rad2deg(rays.elevation)[:, None] + rng.normal(0, 0.3, (64, 1)).astype(np.float32)
    hidden = np.zeros(rays.way.x.shape, np.bool_)
    roof = [
        (0.0, -24.5, 0.36, 3.5),
        (np.pi, -24.5, 0.75, 5.0),
        (np.pi - 0.4, -19.0, 0.12, 2.0),
        (np.pi + 0.4, -19.0, 0.12, 2.0),
    ]
    roof += [
        (rng.uniform(0, 2 * np.pi), rng.uniform(-25, -18), rng.uniform(0.05, 0.2), rng.uniform(1, 4)) for _ in range(3)
    ]
    for middle, centre, width, rise in roof:
        if rng.random() < 0.7:
            scale = rng.uniform(0.6, 1.1)
            gap = np.abs(np.mod(azimuth - middle + np.pi, 2 * np.pi) - np.pi)[None, :]
            hidden |= (gap / (width * scale)) ** 2 + ((elevation - centre) / (rise * scale)) ** 2 < 1
    return hidden
