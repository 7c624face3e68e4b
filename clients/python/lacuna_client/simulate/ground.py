"""The ground of a street scene: where road, sidewalk and verge lie, how high they are, and where rays meet them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lacuna_client.simulate.shapes import INFINITY, Floats, Point, Vector


@dataclass(frozen=True, slots=True)
class Street:
    """A road whose middle line is an arc through (x, y) with the given heading and curvature (1/m, left positive).

    A street that branches off, instead of crossing, starts at station `start_m` of its own middle line.
    """

    x: float
    y: float
    heading: float
    curvature: float
    half_width: float
    start_m: float = -math.inf

    def place(self, station: float, lateral: float) -> tuple[float, float, float]:
        """Position x, y and heading at a station along the middle line, `lateral` metres to its left."""
        half = 0.5 * self.curvature * station
        chord = station * (math.sin(half) / half if abs(half) > 1e-9 else 1.0)
        heading = self.heading + 2 * half
        x = self.x + chord * math.cos(self.heading + half) - lateral * math.sin(heading)
        y = self.y + chord * math.sin(self.heading + half) + lateral * math.cos(heading)
        return x, y, heading

    def lateral(self, x: Floats, y: Floats) -> Floats:
        """Signed distance to the middle line, left positive; the form has no singularity at curvature 0."""
        east, north = x - np.float32(self.x), y - np.float32(self.y)
        k = np.float32(self.curvature)
        left = north * np.float32(math.cos(self.heading)) - east * np.float32(math.sin(self.heading))
        square = east * east + north * north
        inside = np.maximum(1 - k * (2 * left - k * square), np.float32(1e-4))
        distance: Floats = (2 * left - k * square) / (1 + np.sqrt(inside))
        return distance

    def outside(self, x: Floats, y: Floats) -> Floats:
        """Distance to the edge of the carriageway, negative on it."""
        distance = np.abs(self.lateral(x, y)) - np.float32(self.half_width)
        if math.isfinite(self.start_m):
            along = (x - np.float32(self.x)) * np.float32(math.cos(self.heading))
            along += (y - np.float32(self.y)) * np.float32(math.sin(self.heading))
            np.maximum(distance, np.float32(self.start_m) - along, out=distance)
        return distance


@dataclass(frozen=True, slots=True)
class Wave:
    """A gentle undulation of the ground."""

    east: float  # wave numbers, 1/m
    north: float
    phase: float
    height: float


@dataclass(frozen=True, slots=True)
class Ground:
    """Streets on an uneven ground: carriageway, raised sidewalk beside it, then a yard that is paved or grown over.

    slope   height = slope_x x + slope_y y + bend_xx x^2 + bend_xy x y + bend_yy y^2, metres
    camber  fall of the carriageway from its middle outwards, metres a metre
    grass   height of the grass in the yards to the left and right of the first street; 0: paved
    """

    streets: tuple[Street, ...]
    kerb_m: float
    corner_m: float
    sidewalk_m: tuple[float, float]
    grass_m: tuple[float, float]
    slope: tuple[float, float, float, float, float]
    camber: float
    waves: tuple[Wave, ...]

    def outside(self, x: Floats, y: Floats) -> Floats:
        """Distance to the nearest carriageway, negative on it; corners between streets are rounded."""
        nearest = self.streets[0].outside(x, y)
        for street in self.streets[1:]:
            nearest = smooth_minimum(nearest, street.outside(x, y), self.corner_m)
        return nearest

    def bumps(self, x: Floats, y: Floats) -> Floats:
        """Height of undulation and camber; both fade with distance, so that grazing rays meet the ground only once."""
        height = np.zeros_like(x)
        for wave in self.waves:
            height += np.float32(wave.height) * np.sin(
                np.float32(wave.east) * x + np.float32(wave.north) * y + np.float32(wave.phase)
            )
        main = self.streets[0]
        fall = np.minimum(np.abs(main.lateral(x, y)), np.float32(main.half_width))
        height -= np.float32(self.camber) * fall
        height /= 1 + (x * x + y * y) * np.float32(1 / 40.0**2)
        return height

    def bowl(self, x: Floats, y: Floats) -> Floats:
        """Height of the large shape of the ground, a quadratic form."""
        sx, sy, xx, xy, yy = (np.float32(s) for s in self.slope)
        return x * (sx + xx * x + xy * y) + y * (sy + yy * y)

    def height(self, x: float, y: float) -> float:
        """Height at one place, kerb included: where an object stands."""
        ax, ay = np.array([x], np.float32), np.array([y], np.float32)
        raised = self.kerb_m if self.outside(ax, ay)[0] > 0 else 0.0
        return float((self.bowl(ax, ay) + self.bumps(ax, ay))[0]) + raised

    def meet(self, origin: Point, way: Vector, raised: float) -> Floats:
        """Distance to the ground lifted by `raised` metres; inf where the ray never comes down to it.

        The quadratic form is met exactly; the undulation on it by two Newton steps.
        """
        sx, sy, xx, xy, yy = (np.float32(s) for s in self.slope)
        a = way.x * (xx * way.x + xy * way.y) + yy * way.y * way.y
        b = sx * way.x + sy * way.y - way.z
        c = np.float32(raised - origin.z)
        t = nearest_root(a, b, c)
        ahead = np.isfinite(t) & (t < 200)
        t = np.where(ahead, t, 0)
        for _ in range(2):
            bump = self.bumps(t * way.x, t * way.y)
            error = c + t * (b + t * a) + bump
            t -= np.clip(error / np.maximum(b + 2 * t * a, np.float32(0.02)), -5, 5)
        t[~ahead] = INFINITY
        return t


def smooth_minimum(one: Floats, other: Floats, width: float) -> Floats:
    """The lesser of two distances, blended where they differ by less than `width`."""
    blend = np.maximum(np.float32(width) - np.abs(one - other), 0)
    blended: Floats = np.minimum(one, other) - blend * blend * np.float32(0.25 / width)
    return blended


def nearest_root(a: Floats, b: Floats, c: np.float32) -> Floats:
    """Smallest positive root of a t^2 + b t + c for c < 0, else inf; in the form that stays exact as a goes to 0."""
    discriminant = b * b - 4 * a * c
    denominator = b + np.sqrt(np.maximum(discriminant, 0))
    good = (discriminant >= 0) & (denominator > 1e-6)
    return np.where(good, -2 * c / np.where(good, denominator, 1), INFINITY)
