"""A random street: what it is drawn from, how its carriageways run, and the lie of the land."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lacuna_client.simulate.ground import Ground, Street, Wave

Rng = np.random.Generator
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class StreetStyle:
    """What streets are drawn from: ranges are uniform, chances are between 0 and 1.

    reach_m         streets are furnished up to this far from the sensor
    gap_to_car_m    nothing but the ground comes nearer to the sensor than this
    """

    reach_m: float = 80.0
    gap_to_car_m: float = 3.2
    half_width_m: Span = (3.0, 7.5)
    sidewalk_m: Span = (1.2, 4.5)
    kerb_m: Span = (0.05, 0.18)
    curvature_per_m: Span = (-0.012, 0.012)
    slope: float = 0.02
    crossings: tuple[float, ...] = (0.35, 0.45, 0.2)  # chances of none, one, two
    park_chance: float = 0.22
    parked_chance: Span = (0.1, 0.8)
    driving_per_street: float = 2.0
    persons_mean: float = 6.0


def random_ground(rng: Rng, style: StreetStyle) -> Ground:
    """Streets under and around the car, and the lie of the land."""
    half_width = rng.uniform(*style.half_width_m)
    offset = rng.uniform(-0.75, 0.25) * max(half_width - 1.5, 0.5)
    main = Street(0.0, -offset, rng.normal(0, 0.04), rng.uniform(*style.curvature_per_m), half_width)
    count = rng.choice(len(style.crossings), p=style.crossings)
    streets = [main, *(crossing(rng, main, style) for _ in range(count))]
    kerb = 0.02 if rng.random() < 0.15 else rng.uniform(*style.kerb_m)
    grass = [rng.uniform(0.03, 0.12) if rng.random() < 0.35 else 0.0 for _ in range(2)]
    sidewalks = [0.0 if g and rng.random() < 0.2 else rng.uniform(*style.sidewalk_m) for g in grass]
    bend = rng.normal(0, 0.00025, 3)
    slope = (*rng.normal(0, style.slope, 2), *bend)
    waves = tuple(random_wave(rng) for _ in range(3))
    return Ground(
        streets=tuple(streets),
        kerb_m=kerb,
        corner_m=rng.uniform(3, 14),
        sidewalk_m=(sidewalks[0], sidewalks[1]),
        grass_m=(grass[0], grass[1]),
        slope=(slope[0], slope[1], slope[2], slope[3], slope[4]),
        camber=rng.uniform(0, 0.03),
        waves=waves,
    )


def random_wave(rng: Rng) -> Wave:
    """An undulation 12 to 50 m long and a few centimetres high."""
    number, direction = 2 * math.pi / rng.uniform(12, 50), rng.uniform(0, 2 * math.pi)
    phase = rng.uniform(0, 2 * math.pi)
    return Wave(number * math.cos(direction), number * math.sin(direction), phase, rng.uniform(0, 0.04))


def crossing(rng: Rng, main: Street, style: StreetStyle) -> Street:
    """A street across the main one, or branching off it to one side."""
    station = rng.uniform(-45, 45)
    x, y, heading = main.place(station, 0)
    angle = rng.choice([-1, 1]) * (math.pi / 2 + rng.normal(0, 0.3))
    start = 0.0 if rng.random() < 0.5 else -math.inf
    return Street(x, y, heading + angle, rng.uniform(*style.curvature_per_m) * 0.5, rng.uniform(2.8, 6.5), start)
