"""What stands along the streets of a scene: houses, plants, poles, parked and driving vehicles, people."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lacuna_client.simulate import things
from lacuna_client.simulate.ground import Ground, Street
from lacuna_client.simulate.shapes import Point, Shape
from lacuna_client.simulate.street import Span, StreetStyle, random_ground

Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Scene:
    """A ground and the shapes that stand on it, in a level frame with the sensor above the origin."""

    ground: Ground
    shapes: tuple[Shape, ...]


def random_scene(rng: Rng, style: StreetStyle) -> Scene:
    """Draw the streets, then walk along both sides of each and put things up."""
    ground = random_ground(rng, style)
    builder = Furnisher(rng, style, ground, [])
    for street in ground.streets:
        for side in (-1, 1):
            builder.side(street, side)
        builder.traffic(street)
    builder.background()
    return Scene(ground, tuple(builder.shapes))


@dataclass(slots=True)
class Furnisher:
    """Puts things up in a scene, wherever they are clear of the streets and of the car."""

    rng: Rng
    style: StreetStyle
    ground: Ground
    shapes: list[Shape]

    def clearance(self, x: float, y: float) -> float:
        """Distance from a place to the nearest carriageway."""
        return float(self.ground.outside(np.array([x], np.float32), np.array([y], np.float32))[0])

    def stand(self, x: float, y: float) -> Point:
        """The place on the ground at (x, y)."""
        return Point(x, y, self.ground.height(x, y))

    def near_car(self, x: float, y: float, margin: float = 0.0) -> bool:
        """Whether something at (x, y) would touch the car that carries the sensor."""
        gap = self.style.gap_to_car_m + margin
        return abs(x) < gap + 1.5 and abs(y) < gap - 0.7

    def stations(self, street: Street, step: Span) -> list[float]:
        """Places along a street, some metres apart, within reach."""
        reach, rng = self.style.reach_m, self.rng
        start = max(-reach, street.start_m) + rng.uniform(*step)
        count = max(int((reach - start) / step[0]), 1)
        places = start + np.cumsum(rng.uniform(*step, count))
        return [float(s) for s in places if s < reach]

    def side(self, street: Street, side: int) -> None:
        """Everything on one side of a street, from the kerb outwards."""
        walk = self.ground.sidewalk_m[0 if side > 0 else 1]
        park = self.rng.random() < self.style.park_chance
        border = walk + self.rng.uniform(0.2, 1.0)
        setback = 0.0 if self.rng.random() < 0.45 else self.rng.uniform(2, 8)
        if park:
            self.plants(street, side, border, 22.0, 2.5)
        else:
            self.houses(street, side, border + setback)
            if setback > 1.5:
                self.plants(street, side, border, setback, 7.0)
        if setback > 1.5 or park:
            self.border(street, side, border)
        self.poles(street, side, walk)
        self.trees(street, side, walk)
        self.parked(street, side)
        self.people(street, side, walk)

    def houses(self, street: Street, side: int, distance: float) -> None:
        """A row of houses with gaps, each a little out of line."""
        rng, station = self.rng, max(-self.style.reach_m, street.start_m)
        while station < self.style.reach_m:
            frontage, depth = rng.uniform(7, 24), rng.uniform(6, 13)
            lateral = side * (street.half_width + distance + rng.uniform(0, 0.6) + depth / 2)
            x, y, yaw = street.place(station + frontage / 2, lateral)
            clear = min(self.clearance(*things.pose(x, y, yaw, a * frontage / 2, b * depth / 2))
                        for a in (-1, 0, 1) for b in (-1, 0, 1))  # fmt: skip
            if clear > 1.0 and not self.near_car(x, y, depth / 2):
                self.shapes += things.building(rng, self.stand(x, y), yaw, frontage, depth)
            station += frontage + (rng.uniform(2, 12) if rng.random() < 0.3 else rng.uniform(-0.2, 0.1))

    def plants(self, street: Street, side: int, distance: float, depth: float, step: float) -> None:
        """Trees and bushes scattered over a strip."""
        for station in self.stations(street, (0.5 * step, 1.5 * step)):
            lateral = side * (street.half_width + distance + self.rng.uniform(0.5, depth))
            x, y, _ = street.place(station, lateral)
            if self.clearance(x, y) > 1.2 and not self.near_car(x, y):
                grow = things.tree if self.rng.random() < 0.3 else things.bush
                self.shapes += grow(self.rng, self.stand(x, y))

    def border(self, street: Street, side: int, distance: float) -> None:
        """Hedges, walls and fences between sidewalk and yard."""
        rng = self.rng
        for station in self.stations(street, (8, 14)):
            kind, length = rng.random(), rng.uniform(3, 9)
            x, y, yaw = street.place(station, side * (street.half_width + distance + 0.3))
            ends = [things.pose(x, y, yaw, end * length / 2, 0) for end in (-1, 0, 1)]
            if kind < 0.7 and min(self.clearance(*end) for end in ends) > 0.3 and not self.near_car(x, y):
                make = things.hedge if kind < 0.35 else things.wall
                self.shapes += make(rng, self.stand(x, y), yaw, length)

    def poles(self, street: Street, side: int, walk: float) -> None:
        """Lamps and signs near the kerb."""
        for station in self.stations(street, (7, 28)):
            lateral = side * (street.half_width + self.rng.uniform(0.25, max(0.3, 0.5 * walk)))
            x, y, _ = street.place(station, lateral)
            if self.clearance(x, y) > 0.1 and not self.near_car(x, y):
                self.shapes += things.pole(self.rng, self.stand(x, y))

    def trees(self, street: Street, side: int, walk: float) -> None:
        """An avenue on some streets."""
        if self.rng.random() < 0.6:
            return
        for station in self.stations(street, (7, 16)):
            x, y, _ = street.place(station, side * (street.half_width + max(0.8, 0.3 * walk)))
            if self.clearance(x, y) > 0.5 and not self.near_car(x, y):
                self.shapes += things.tree(self.rng, self.stand(x, y))

    def parked(self, street: Street, side: int) -> None:
        """Cars along the kerb, at times with two wheels on it, at times slantwise in bays."""
        rng = self.rng
        chance, slant = rng.uniform(*self.style.parked_chance), rng.random() < 0.12
        half_on = rng.uniform(-0.3, 0.6)
        if street.half_width < 3.6:
            chance *= 0.4
        step = (3.0, 3.6) if slant else (5.2, 7.0)
        for station in self.stations(street, step):
            inset = 2.4 if slant else 1.05 - half_on
            x, y, yaw = street.place(station, side * (street.half_width - inset))
            if rng.random() > chance or self.near_car(x, y, 1.2) or self.clearance(x, y) < -inset - 0.4:
                continue
            yaw += side * math.pi / 3 if slant else rng.normal(0, 0.03) + math.pi * (rng.random() < 0.5)
            height = min(self.stand(x, y).z, self.ground.height(*street.place(station, side)[:2]) + 0.1)
            self.shapes += things.vehicle(rng, Point(x, y, height), yaw)

    def traffic(self, street: Street) -> None:
        """Vehicles in the lanes, keeping right."""
        rng = self.rng
        for _ in range(rng.poisson(self.style.driving_per_street)):
            side = rng.choice([-1, 1])
            station = rng.uniform(max(-60, street.start_m), 60)
            x, y, yaw = street.place(station, side * min(1.8, 0.5 * street.half_width))
            if not self.near_car(x, y, 2.0) and self.clearance(x, y) < -1.0:
                self.shapes += things.vehicle(rng, self.stand(x, y), yaw + (math.pi if side > 0 else 0))

    def people(self, street: Street, side: int, walk: float) -> None:
        """Passers-by on the sidewalk, a few on the road, alone or in groups."""
        rng = self.rng
        for _ in range(rng.poisson(self.style.persons_mean / 2 / len(self.ground.streets))):
            station = rng.normal(0, 22)
            lateral = street.half_width + (
                rng.uniform(0.3, max(walk, 1.0)) if rng.random() < 0.8 else -rng.uniform(0, 3)
            )
            for _ in range(rng.integers(1, 4)):
                x, y, _ = street.place(station + rng.normal(0, 0.7), side * (lateral + rng.normal(0, 0.4)))
                if station > street.start_m and not self.near_car(x, y):
                    self.shapes += things.person(rng, self.stand(x, y))

    def background(self) -> None:
        """Houses and trees further out, so that streets do not end in nothing."""
        rng = self.rng
        for _ in range(rng.integers(25, 60)):
            radius, angle = rng.uniform(25, 75), rng.uniform(0, 2 * math.pi)
            x, y = radius * math.cos(angle), radius * math.sin(angle)
            room = self.clearance(x, y)
            if room > 14 and rng.random() < 0.5:
                self.shapes += things.building(
                    rng, self.stand(x, y), angle + rng.normal(0, 0.5), rng.uniform(8, 18), 9.0
                )
            elif room > 4:
                grow = things.tree if rng.random() < 0.6 else things.bush
                self.shapes += grow(rng, self.stand(x, y))
