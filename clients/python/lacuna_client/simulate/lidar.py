"""A spinning LiDAR of 64 beams, modelled on the Velodyne HDL-64E as it is mounted on the KITTI car."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lacuna_client.simulate.shapes import Extent, Floats, Point, Vector

Window = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Lidar:
    """The sensor and its mounting; angles in degrees, lengths in metres, spreads as standard deviations.

    Two blocks of 32 beams: 2.6 to -7.8 degrees in steps of a third, -8.4 to -23.8 in steps of a half.
    """

    columns: int = 2083
    upper_deg: tuple[float, float] = (2.6, -7.8)
    lower_deg: tuple[float, float] = (-8.4, -23.8)
    height_m: float = 1.73
    nearest_m: float = 2.5
    reach_m: float = 80.0
    range_noise_m: float = 0.015
    beam_bias_m: float = 0.01
    beam_noise_deg: float = 0.05
    tilt_deg: float = 1.0
    sensitivity: float = 500.0  # a hit of strength s is lost with chance exp(-sensitivity s)
    dropout: float = 0.002  # chance that a shot is lost for no reason
    dull: float = 0.04  # chance that a shot's intensity is near 0


@dataclass(frozen=True, slots=True)
class Rays:
    """Unit vectors of all beams of one turn, [64, columns] each: in the sensor's frame and in the scene's."""

    own: Vector
    way: Vector
    origin: Point
    elevation: Floats  # of each beam, falling from row to row, radians
    tilt: float

    def windows(self, extent: Extent) -> Iterator[Window]:
        """The rows and columns whose rays may meet a shape: one block, or two if it straddles the turn's start."""
        rows = self.rows(extent)
        count = self.way.x.shape[1]
        distance = math.hypot(extent.x, extent.y)
        if rows.start >= rows.stop:
            return
        if distance <= extent.radius * 1.01:
            yield rows, slice(0, count)
            return
        half = math.asin(extent.radius / distance) + 0.6 * self.tilt + 0.004
        middle = math.atan2(extent.y, extent.x)
        first = math.floor((middle - half) / (2 * math.pi) * count)
        last = first + math.ceil(2 * half / (2 * math.pi) * count) + 2
        if last - first >= count:
            yield rows, slice(0, count)
            return
        first, last = first % count, (first % count) + last - first
        yield rows, slice(first, min(last, count))
        if last > count:
            yield rows, slice(0, last - count)

    def rows(self, extent: Extent) -> slice:
        """The beams between a shape's bottom and top, seen from the sensor, with room for the tilt."""
        distance = math.hypot(extent.x, extent.y)
        near, far = max(distance - extent.radius, 0.1), distance + extent.radius
        rise, fall = extent.top - self.origin.z, extent.bottom - self.origin.z
        top = math.atan2(rise, near if rise > 0 else far) + self.tilt
        bottom = math.atan2(fall, far if fall > 0 else near) - self.tilt
        first = int(np.searchsorted(-self.elevation, -np.float32(top)))
        return slice(first, int(np.searchsorted(-self.elevation, -np.float32(bottom))))


def random_rays(rng: np.random.Generator, lidar: Lidar) -> Rays:
    """One turn of the sensor, with its beams slightly out of line and the car slightly tilted."""
    elevation = np.deg2rad(np.concatenate([np.linspace(*lidar.upper_deg, 32), np.linspace(*lidar.lower_deg, 32)]))
    elevation = np.sort(elevation + rng.normal(0, math.radians(lidar.beam_noise_deg), 64))[::-1].astype(np.float32)
    step = 2 * math.pi / lidar.columns
    azimuth = (np.arange(lidar.columns) * step)[None, :] + rng.uniform(0, step, (64, 1))
    azimuth = azimuth.astype(np.float32)
    flat, up = np.cos(elevation)[:, None], np.sin(elevation)[:, None]
    own = Vector(flat * np.cos(azimuth), flat * np.sin(azimuth), np.broadcast_to(up, azimuth.shape))
    pitch, roll = np.radians(rng.normal(0, lidar.tilt_deg, 2).clip(-2.5, 2.5))
    # For small angles the rotation is a shear; renormalising is not worth its time (error below 0.1 %).
    way = Vector(
        own.x + np.float32(pitch) * own.z,
        own.y - np.float32(roll) * own.z,
        own.z - np.float32(pitch) * own.x + np.float32(roll) * own.y,
    )
    tilt = abs(pitch) + abs(roll) + 0.01
    return Rays(own, way, Point(0.0, 0.0, lidar.height_m), elevation, tilt)
