"""Casting rays: the nearest thing that each ray meets, among the shapes of a scene and its ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lacuna_client.simulate.classes import Class
from lacuna_client.simulate.ground import Ground
from lacuna_client.simulate.lidar import Rays, Window
from lacuna_client.simulate.shapes import INFINITY, Floats, Polyhedron, Shape, Vector

Rng = np.random.Generator
Mask = NDArray[np.bool_]


@dataclass(slots=True)
class Hits:
    """The nearest hit of every ray so far, [64, columns] each; distance is inf where there is none.

    roughness  standard deviation of the reflectance from one beam to the next
    """

    distance: Floats
    cosine: Floats
    reflectance: Floats
    roughness: Floats
    dropout: Floats
    label: NDArray[np.uint8]

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Hits:
        """No hits yet."""
        cosine, reflectance, roughness, dropout = np.zeros((4, *shape), np.float32)
        return cls(np.full(shape, INFINITY), cosine, reflectance, roughness, dropout, np.zeros(shape, np.uint8))


@dataclass(frozen=True, slots=True)
class Pavement:
    """Reflectances of the ground that one street has throughout, and which of its lines are painted."""

    asphalt: float
    paving: float
    grass: float
    paint: float
    middle_line: bool
    edge_lines: bool


def random_pavement(rng: Rng) -> Pavement:
    """Sidewalks are at times of the same stuff as the carriageway, so that only the kerb tells them apart."""
    asphalt = rng.uniform(0.15, 0.36)
    paving = asphalt + rng.normal(0, 0.02) if rng.random() < 0.35 else rng.uniform(0.2, 0.45)
    lines = rng.random(2) < 0.5
    return Pavement(asphalt, paving, rng.uniform(0.28, 0.5), rng.uniform(0.35, 0.7), bool(lines[0]), bool(lines[1]))


def cast(rng: Rng, rays: Rays, shape: Shape, hits: Hits) -> None:
    """Keep what of a shape is nearer than all that was hit before."""
    surface = shape.surface
    for window in rays.windows(shape.extent):
        passage = shape.passage(rays.origin, Vector(*(axis[window] for axis in rays.way)))
        distance = passage.enter
        if np.isfinite(surface.density):
            distance = distance + rng.exponential(1 / surface.density, distance.shape).astype(np.float32)
            distance[distance > passage.leave] = INFINITY
        nearer = distance < hits.distance[window]
        np.copyto(hits.distance[window], distance, where=nearer)
        np.copyto(hits.cosine[window], passage.cosine, where=nearer)
        hits.reflectance[window][nearer] = surface.reflectance
        hits.roughness[window][nearer] = surface.roughness
        hits.dropout[window][nearer] = surface.dropout
        hits.label[window][nearer] = surface.label
        if surface.windows and isinstance(shape, Polyhedron):
            set_panes(rng, shape.yaw, Vector(*(axis[window][nearer] for axis in rays.way)), hits, (window, nearer))


def set_panes(rng: Rng, yaw: float, way: Vector, hits: Hits, where: tuple[Window, Mask]) -> None:
    """Set a regular grid of panes into a facade: deeper, darker, and often without a return."""
    window, nearer = where
    period, storey, phase = rng.uniform(2.0, 4.0), rng.uniform(2.7, 3.3), rng.uniform(0, 3, 2)
    distance = hits.distance[window][nearer]
    # On every face of a box one of the two coordinates is constant, so their sum runs along the face.
    along = distance * ((np.cos(yaw) - np.sin(yaw)) * way.x + (np.cos(yaw) + np.sin(yaw)) * way.y) + phase[0]
    pane = (np.mod(along, period) < 0.4 * period) & (np.mod(distance * way.z + phase[1], storey) < 0.5 * storey)
    hits.distance[window][nearer] = distance + np.where(pane, np.float32(rng.uniform(0.05, 0.3)), 0)
    hits.dropout[window][nearer] = np.where(pane, np.float32(rng.uniform(0.0, 0.6)), 0)
    hits.reflectance[window][nearer] *= np.where(pane, np.float32(rng.uniform(0.2, 1.0)), 1)


def cast_ground(rng: Rng, rays: Rays, ground: Ground, pavement: Pavement, hits: Hits) -> None:
    """Meet the raised level first (sidewalks and yards), then the carriageway, then the kerb's face between them."""
    upper, lower = ground.meet(rays.origin, rays.way, ground.kerb_m), ground.meet(rays.origin, rays.way, 0.0)
    seen = np.minimum(upper, lower) < np.minimum(hits.distance, 150)
    way = Vector(*(axis[seen] for axis in rays.way))
    upper, lower = upper[seen], lower[seen]
    lower = np.where(np.isfinite(lower), lower, upper + 50)
    outside = ground.outside(upper * way.x, upper * way.y)
    face = (outside <= 0) & (ground.outside(lower * way.x, lower * way.y) > 0)
    distance = np.where(outside > 0, upper, lower)
    distance[face] = kerb_face(ground, upper[face], lower[face], Vector(*(axis[face] for axis in way)))
    raised = (outside > 0) | face
    x, y = distance * way.x, distance * way.y
    left = ground.streets[0].lateral(x, y) > 0
    blade = np.where(left, *(np.float32(s) for s in ground.grass_m))
    green = raised & (blade > 0) & (outside > np.where(left, *(np.float32(s) for s in ground.sidewalk_m)))
    blade *= rng.random(x.shape, np.float32)
    hits.distance[seen] = distance - np.where(green, np.minimum(blade / np.maximum(-way.z, 0.05), 1.0), 0)
    hits.cosine[seen] = np.where(face, np.float32(0.7), -way.z)
    hits.label[seen] = np.where(green, Class.VEGETATION, np.where(raised, Class.SIDEWALK, Class.ROAD))
    hits.roughness[seen] = np.where(green, np.float32(0.08), np.float32(0.025))
    hits.dropout[seen] = 0
    light = np.where(green, pavement.grass, np.where(raised, pavement.paving, pavement.asphalt))
    light[painted(ground, pavement, x, y) & ~raised] = pavement.paint
    hits.reflectance[seen] = light


def kerb_face(ground: Ground, upper: Floats, lower: Floats, way: Vector) -> Floats:
    """Halve the way between the two levels until it ends at the carriageway's edge."""
    for _ in range(6):
        middle = (upper + lower) * np.float32(0.5)
        on_road = ground.outside(middle * way.x, middle * way.y) <= 0
        upper, lower = np.where(on_road, middle, upper), np.where(on_road, lower, middle)
    return lower


def painted(ground: Ground, pavement: Pavement, x: Floats, y: Floats) -> Mask:
    """Where the middle line and the edge lines are."""
    main = ground.streets[0]
    lateral = main.lateral(x, y)
    middle = (np.abs(lateral) < 0.07) & (np.mod(x, 9) < 4) & pavement.middle_line
    return middle | ((np.abs(np.abs(lateral) - np.float32(main.half_width - 0.3)) < 0.06) & pavement.edge_lines)
