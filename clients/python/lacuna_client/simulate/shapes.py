"""Solid and porous shapes that rays are cast against, and where a ray from the sensor enters and leaves them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
INFINITY = np.float32(np.inf)


class Vector(NamedTuple):
    """Three arrays of one shape, or three numbers: x, y and z apart, since that is how they are computed with."""

    x: Floats
    y: Floats
    z: Floats


class Point(NamedTuple):
    """A place in metres."""

    x: float
    y: float
    z: float


class Passage(NamedTuple):
    """Where rays enter and leave a shape (metres along the ray; enter = inf for a miss), and |cos| of incidence."""

    enter: Floats
    leave: Floats
    cosine: Floats


@dataclass(frozen=True, slots=True)
class Surface:
    """What a shape is made of.

    reflectance  share of the light that returns at normal incidence, 0..1
    density      expected hits per metre of way inside it: finite for leaves and fences, which let beams through
    dropout      share of the beams that never return (glass, black paint)
    roughness    standard deviation of the reflectance from one beam to the next
    windows      whether the surface carries a regular grid of window panes
    """

    label: int
    reflectance: float
    density: float = math.inf
    dropout: float = 0.0
    roughness: float = 0.06
    windows: bool = False


@dataclass(frozen=True, slots=True)
class Extent:
    """An upright cylinder around a shape, used to find the few rays that can meet it."""

    x: float
    y: float
    radius: float
    bottom: float
    top: float


@dataclass(frozen=True, slots=True)
class Polyhedron:
    """A convex body: all points p with normal . p <= offset in a frame turned by yaw about its centre."""

    centre: Point
    yaw: float
    planes: tuple[tuple[float, float, float, float], ...]  # nx, ny, nz, offset
    extent: Extent
    surface: Surface

    def passage(self, origin: Point, way: Vector) -> Passage:
        """Clip each ray with every plane in turn."""
        cos, sin = np.float32(math.cos(self.yaw)), np.float32(math.sin(self.yaw))
        start = turn(origin.x - self.centre.x, origin.y - self.centre.y, self.yaw)
        start_z = origin.z - self.centre.z
        along, across = cos * way.x + sin * way.y, cos * way.y - sin * way.x
        enter, leave = np.zeros_like(way.x), np.full_like(way.x, INFINITY)
        cosine = np.ones_like(way.x)
        for nx, ny, nz, offset in self.planes:
            slope = np.float32(nx) * along + np.float32(ny) * across + np.float32(nz) * way.z
            slope[slope == 0] = np.float32(1e-9)
            height = np.float32(offset - nx * start[0] - ny * start[1] - nz * start_z)
            cut = height / slope
            inward = slope < 0
            later = inward & (cut > enter)
            np.copyto(enter, cut, where=later)
            np.copyto(cosine, -slope, where=later)
            np.copyto(leave, np.minimum(leave, cut), where=~inward)
        enter[leave <= enter] = INFINITY
        return Passage(enter, leave, cosine)


@dataclass(frozen=True, slots=True)
class Ellipsoid:
    """An upright ellipsoid of radii (rx, ry, rz)."""

    centre: Point
    radii: Point
    surface: Surface

    @property
    def extent(self) -> Extent:
        """The cylinder around it."""
        c, r = self.centre, self.radii
        return Extent(c.x, c.y, max(r.x, r.y), c.z - r.z, c.z + r.z)

    def passage(self, origin: Point, way: Vector) -> Passage:
        """Solve the quadratic in the frame in which the ellipsoid is the unit sphere."""
        r = self.radii
        ox, oy, oz = ((o - c) / s for o, c, s in zip(origin, self.centre, r, strict=True))
        wx, wy, wz = (w * np.float32(1 / s) for w, s in zip(way, r, strict=True))
        a = wx * wx + wy * wy + wz * wz
        b = np.float32(ox) * wx + np.float32(oy) * wy + np.float32(oz) * wz
        enter, leave, root = solve(a, b, np.float32(ox * ox + oy * oy + oz * oz - 1))
        cosine: Floats = root / np.sqrt(a) + np.float32(0.1)
        return Passage(enter, leave, cosine)


@dataclass(frozen=True, slots=True)
class Cylinder:
    """An upright cylinder, open at both ends: poles and trunks are too thin to be seen from above."""

    x: float
    y: float
    radius: float
    bottom: float
    top: float
    surface: Surface

    @property
    def extent(self) -> Extent:
        """Itself."""
        return Extent(self.x, self.y, self.radius, self.bottom, self.top)

    def passage(self, origin: Point, way: Vector) -> Passage:
        """Solve the quadratic in the plane, then ask whether the hit lies between bottom and top."""
        ox, oy = origin.x - self.x, origin.y - self.y
        a = way.x * way.x + way.y * way.y
        b = np.float32(ox) * way.x + np.float32(oy) * way.y
        enter, leave, root = solve(a, b, np.float32(ox * ox + oy * oy - self.radius**2))
        with np.errstate(invalid="ignore"):
            z = np.float32(origin.z) + np.where(np.isfinite(enter), enter, np.float32(0)) * way.z
        enter[(z < self.bottom) | (z > self.top)] = INFINITY
        cosine = (root / (np.sqrt(a) * self.radius)).astype(np.float32, copy=False)
        return Passage(enter, leave, cosine)


Shape = Polyhedron | Ellipsoid | Cylinder


def solve(a: Floats, b: Floats, c: np.float32) -> tuple[Floats, Floats, Floats]:
    """Roots of a t^2 + 2 b t + c: the lower (inf where there is none ahead), the upper, and sqrt(discriminant)."""
    discriminant = b * b - a * c
    root = np.sqrt(np.maximum(discriminant, 0))
    enter, leave = (-b - root) / a, (root - b) / a
    enter[(discriminant <= 0) | (leave <= 0)] = INFINITY
    np.maximum(enter, 0, out=enter)
    return enter, leave, root


def turn(x: float, y: float, yaw: float) -> tuple[float, float]:
    """Coordinates of (x, y) in a frame turned by yaw."""
    return math.cos(yaw) * x + math.sin(yaw) * y, math.cos(yaw) * y - math.sin(yaw) * x


def box(centre: Point, half: Point, yaw: float, surface: Surface) -> Polyhedron:
    """A box of half sizes (along, across, up), turned by yaw."""
    return wedge(centre, half, yaw, surface, front=0.0, back=0.0, side=0.0)


def wedge(
    centre: Point, half: Point, yaw: float, surface: Surface, *, front: float, back: float, side: float
) -> Polyhedron:
    """A box whose front, back and both sides lean inwards by so many metres from bottom to top: a car's cabin."""
    height = 2 * half.z
    planes = (
        leaning(1, 0, half.x, front, height),
        leaning(-1, 0, half.x, back, height),
        leaning(0, 1, half.y, side, height),
        leaning(0, -1, half.y, side, height),
        (0.0, 0.0, 1.0, half.z),
        (0.0, 0.0, -1.0, half.z),
    )
    extent = Extent(centre.x, centre.y, math.hypot(half.x, half.y), centre.z - half.z, centre.z + half.z)
    return Polyhedron(centre, yaw, planes, extent, surface)


def leaning(x: float, y: float, half: float, inset: float, height: float) -> tuple[float, float, float, float]:
    """The plane of a side face that lies at `half` at the bottom and `inset` further in at the top."""
    length = math.hypot(height, inset)
    nxy, nz = height / length, inset / length
    return x * nxy, y * nxy, nz, nxy * (half - inset / 2)
