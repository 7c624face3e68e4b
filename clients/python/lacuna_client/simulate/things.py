"""What stands in streets: each function makes one thing out of shapes, standing on the ground at (x, y, z)."""

from __future__ import annotations

import math

import numpy as np

from lacuna_client.simulate.classes import Class
from lacuna_client.simulate.shapes import Cylinder, Ellipsoid, Point, Shape, Surface, box, turn, wedge

Rng = np.random.Generator


def pose(x: float, y: float, yaw: float, along: float, across: float) -> tuple[float, float]:
    """The place `along` ahead and `across` to the left of (x, y), looking in direction yaw."""
    east, north = turn(along, across, -yaw)
    return x + east, y + north


def car(rng: Rng, ground: Point, yaw: float) -> list[Shape]:
    """A passenger car: body, bonnet, cabin with glass, wheels."""
    length, width, height = rng.uniform(3.5, 4.9), rng.uniform(1.6, 1.9), rng.uniform(1.38, 1.75)
    belt, floor = height * rng.uniform(0.58, 0.66), rng.uniform(0.16, 0.26)
    paint = Surface(Class.VEHICLE, rng.uniform(0.02, 0.45), dropout=rng.uniform(0.0, 0.2), roughness=0.1)
    glass = Surface(Class.VEHICLE, rng.uniform(0.03, 0.2), dropout=rng.uniform(0.4, 0.8))
    middle = (belt + floor) / 2
    nose = rng.uniform(0.1, 0.3)
    body = wedge(
        Point(ground.x, ground.y, ground.z + middle),
        Point(length / 2, width / 2, (belt - floor) / 2),
        yaw,
        paint,
        front=nose,
        back=rng.uniform(0.0, 0.2),
        side=0.06,
    )
    hatchback = rng.random() < 0.6
    cabin_length = length * (rng.uniform(0.62, 0.72) if hatchback else rng.uniform(0.5, 0.58))
    shift = -(length - cabin_length) / 2 + (0.05 if hatchback else length * 0.1)
    cx, cy = pose(ground.x, ground.y, yaw, shift, 0)
    cabin = wedge(
        Point(cx, cy, ground.z + (belt + height) / 2),
        Point(cabin_length / 2, width / 2 - 0.04, (height - belt) / 2),
        yaw,
        glass,
        front=rng.uniform(0.55, 0.85),
        back=rng.uniform(0.15, 0.35) if hatchback else rng.uniform(0.5, 0.8),
        side=rng.uniform(0.12, 0.22),
    )
    roof = box(
        Point(cx - 0.15 * math.cos(yaw), cy - 0.15 * math.sin(yaw), ground.z + height),
        Point(cabin_length / 2 - 0.55, width / 2 - 0.25, 0.02),
        yaw,
        paint,
    )
    return [body, cabin, roof, *wheels(ground, yaw, length * 0.31, width / 2, 0.31)]


def wheels(ground: Point, yaw: float, along: float, across: float, radius: float) -> list[Shape]:
    """Four dark wheels; boxes will do, a beam or two hits each."""
    rubber = Surface(Class.VEHICLE, 0.12, dropout=0.3)
    shapes: list[Shape] = []
    for ahead in (along, -along):
        for left in (across - 0.1, 0.1 - across):
            x, y = pose(ground.x, ground.y, yaw, ahead, left)
            shapes.append(box(Point(x, y, ground.z + radius), Point(radius * 0.9, 0.1, radius), yaw, rubber))
    return shapes


def van(rng: Rng, ground: Point, yaw: float) -> list[Shape]:
    """A van or minibus: one tall body with a short sloping nose."""
    length, width, height = rng.uniform(4.4, 6.2), rng.uniform(1.8, 2.1), rng.uniform(1.9, 2.7)
    paint = Surface(Class.VEHICLE, rng.uniform(0.08, 0.55), dropout=rng.uniform(0.02, 0.25))
    nose = rng.uniform(0.7, 1.1)
    hx, hy = pose(ground.x, ground.y, yaw, (length - nose) / 2, 0)
    bx, by = pose(ground.x, ground.y, yaw, -nose / 2, 0)
    bonnet = wedge(
        Point(hx, hy, ground.z + 0.7), Point(nose / 2, width / 2, 0.45), yaw, paint, front=0.2, back=0, side=0
    )
    hull = wedge(
        Point(bx, by, ground.z + (height + 0.25) / 2),
        Point((length - nose) / 2, width / 2, (height - 0.25) / 2),
        yaw,
        paint,
        front=rng.uniform(0.4, 0.9),
        back=0.1,
        side=0.1,
    )
    return [hull, bonnet, *wheels(ground, yaw, length * 0.31, width / 2, 0.34)]


def truck(rng: Rng, ground: Point, yaw: float) -> list[Shape]:
    """A lorry or a bus: a cab and a long box behind it."""
    length, width, height = rng.uniform(6.5, 12.0), rng.uniform(2.3, 2.55), rng.uniform(2.8, 3.8)
    paint = Surface(Class.VEHICLE, rng.uniform(0.15, 0.6), dropout=0.05)
    cab, gap = 2.0, rng.choice([0.0, 0.3])
    fx, fy = pose(ground.x, ground.y, yaw, (length - cab) / 2, 0)
    bx, by = pose(ground.x, ground.y, yaw, -(cab + gap) / 2, 0)
    floor = rng.uniform(0.35, 0.9)
    load = box(
        Point(bx, by, ground.z + (height + floor) / 2),
        Point((length - cab - gap) / 2, width / 2, (height - floor) / 2),
        yaw,
        paint,
    )
    top = min(height, 2.9)
    front = wedge(
        Point(fx, fy, ground.z + (top + 0.4) / 2), Point(cab / 2, width / 2, (top - 0.4) / 2), yaw, paint,
        front=0.3, back=0, side=0.05,
    )  # fmt: skip
    return [load, front, *wheels(ground, yaw, length * 0.36, width / 2, 0.48)]


def vehicle(rng: Rng, ground: Point, yaw: float) -> list[Shape]:
    """A car mostly, else a van, seldom a lorry or bus."""
    kind = rng.random()
    if kind < 0.8:
        return car(rng, ground, yaw)
    return van(rng, ground, yaw) if kind < 0.94 else truck(rng, ground, yaw)


def person(rng: Rng, ground: Point) -> list[Shape]:
    """Someone standing or walking: two legs, a trunk, arms and a head."""
    height = rng.uniform(1.45, 1.95)
    yaw, stride = rng.uniform(0, 2 * math.pi), rng.uniform(0.0, 0.28)
    cloth = Surface(Class.PERSON, rng.uniform(0.1, 0.55), dropout=0.05)
    shapes: list[Shape] = []
    for side in (-1, 1):
        x, y = pose(ground.x, ground.y, yaw, side * stride, side * 0.1)
        shapes.append(Cylinder(x, y, 0.085, ground.z, ground.z + 0.5 * height, cloth))
        x, y = pose(ground.x, ground.y, yaw, -side * stride * 0.6, side * 0.26)
        shapes.append(Ellipsoid(Point(x, y, ground.z + 0.62 * height), Point(0.08, 0.08, 0.3), cloth))
    trunk = Point(rng.uniform(0.16, 0.24), rng.uniform(0.16, 0.24), 0.21 * height)
    shapes.append(Ellipsoid(Point(ground.x, ground.y, ground.z + 0.66 * height), trunk, cloth))
    head = Point(0.1, 0.1, 0.13)
    shapes.append(Ellipsoid(Point(ground.x, ground.y, ground.z + height - 0.13), head, cloth))
    return shapes


def leaves(rng: Rng, density: tuple[float, float]) -> Surface:
    """Foliage that a beam passes for 1/density metres on average."""
    return Surface(
        Class.VEGETATION, rng.uniform(0.12, 0.5), density=rng.uniform(*density), dropout=0.05, roughness=0.12
    )


def tree(rng: Rng, ground: Point) -> list[Shape]:
    """A trunk, leaning on nothing, and a crown of a few porous ellipsoids."""
    height, spread = rng.uniform(4, 12), rng.uniform(1.0, 3.2)
    first = min(rng.uniform(1.0, 3.0), 0.5 * height)
    bark = Surface(Class.VEGETATION, rng.uniform(0.15, 0.4))
    shapes: list[Shape] = [Cylinder(ground.x, ground.y, rng.uniform(0.08, 0.3), ground.z, ground.z + first + 1.5, bark)]
    foliage = leaves(rng, (0.3, 1.5))
    for _ in range(rng.integers(3, 6)):
        r = spread * rng.uniform(0.5, 0.9)
        x, y = ground.x + rng.normal(0, 0.4 * spread), ground.y + rng.normal(0, 0.4 * spread)
        rise = rng.uniform(0.6, 1.2) * r
        z = ground.z + rng.uniform(first + 0.7 * rise, max(first + rise, height - rise))
        shapes.append(Ellipsoid(Point(x, y, z), Point(r, r * rng.uniform(0.7, 1.3), rise), foliage))
    return shapes


def bush(rng: Rng, ground: Point) -> list[Shape]:
    """A shrub: porous ellipsoids down to the ground."""
    size = rng.uniform(0.4, 1.6)
    foliage = leaves(rng, (1.0, 4.0))
    shapes: list[Shape] = []
    for _ in range(rng.integers(2, 5)):
        r = size * rng.uniform(0.5, 1.0)
        x, y = ground.x + rng.normal(0, 0.6 * size), ground.y + rng.normal(0, 0.6 * size)
        z = ground.z + rng.uniform(0.3, 0.9) * r
        shapes.append(
            Ellipsoid(Point(x, y, z), Point(r, r * rng.uniform(0.7, 1.3), r * rng.uniform(0.6, 1.3)), foliage)
        )
    return shapes


def hedge(rng: Rng, ground: Point, yaw: float, length: float) -> list[Shape]:
    """A clipped hedge along a yard's border."""
    half = Point(length / 2, rng.uniform(0.25, 0.6), rng.uniform(0.4, 1.1))
    return [box(Point(ground.x, ground.y, ground.z + half.z), half, yaw, leaves(rng, (2.0, 8.0)))]


def wall(rng: Rng, ground: Point, yaw: float, length: float) -> list[Shape]:
    """A garden wall or a fence; a fence lets beams through."""
    half = Point(length / 2, rng.uniform(0.05, 0.2), rng.uniform(0.3, 1.1))
    density = rng.uniform(3, 10) if rng.random() < 0.4 else math.inf
    stone = Surface(Class.BUILDING, rng.uniform(0.15, 0.5), density=density)
    return [box(Point(ground.x, ground.y, ground.z + half.z - 0.3), Point(half.x, half.y, half.z + 0.3), yaw, stone)]


def pole(rng: Rng, ground: Point) -> list[Shape]:
    """A street lamp, a traffic sign with its plate, a traffic light, or a bollard."""
    kind = rng.random()
    metal = Surface(Class.POLE, rng.uniform(0.15, 0.6), dropout=0.05)
    x, y, z = ground
    if kind < 0.45:
        return [
            Cylinder(x, y, rng.uniform(0.06, 0.13), z, z + rng.uniform(4.5, 9), metal),
            Cylinder(x, y, rng.uniform(0.1, 0.18), z, z + rng.uniform(0.4, 1.2), metal),
        ]
    if kind < 0.85:
        plate = Surface(Class.POLE, 0.95)
        middle = Point(x, y, z + rng.uniform(1.8, 2.6))
        half = Point(0.02, rng.uniform(0.2, 0.4), rng.uniform(0.2, 0.45))
        return [Cylinder(x, y, 0.04, z, middle.z + half.z, metal), box(middle, half, rng.uniform(0, math.pi), plate)]
    return [Cylinder(x, y, rng.uniform(0.05, 0.12), z, z + rng.uniform(0.7, 1.1), metal)]


def building(rng: Rng, ground: Point, yaw: float, frontage: float, depth: float) -> list[Shape]:
    """A house, its middle at `ground`, its front along yaw; with a plinth, sometimes a bay, an awning or steps."""
    height = rng.uniform(4, 16)
    plaster = Surface(Class.BUILDING, rng.uniform(0.25, 0.6), windows=rng.random() < 0.8)
    low = ground.z - 1.5
    middle = Point(ground.x, ground.y, (low + ground.z + height) / 2)
    shapes: list[Shape] = [box(middle, Point(frontage / 2, depth / 2, middle.z - low), yaw, plaster)]
    for _ in range(rng.integers(0, 4)):
        along = rng.uniform(-0.4, 0.4) * frontage
        out = depth / 2 * rng.choice([-1, 1])
        x, y = pose(ground.x, ground.y, yaw, along, out)
        bottom, rise = (rng.uniform(2.2, 3.0), 0.2) if rng.random() < 0.4 else (0.0, rng.uniform(0.2, 3.5))
        half = Point(rng.uniform(0.3, 1.8), rng.uniform(0.1, 0.9), rise / 2)
        shapes.append(box(Point(x, y, ground.z + bottom + half.z), half, yaw, plaster))
    return shapes
