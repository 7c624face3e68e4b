"""One scan of one random street: cast all rays, then lose, blur and shade the returns as a real sensor does."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lacuna_client.simulate.classes import Class
from lacuna_client.simulate.ground import Ground
from lacuna_client.simulate.lidar import Lidar, Rays, random_rays
from lacuna_client.simulate.shapes import INFINITY, Floats, Shape
from lacuna_client.simulate.street import Scene, StreetStyle, random_scene

Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Scan:
    """A labelled point cloud.

    points  float32 [n, 4]  x (ahead), y (left), z (up) in metres from the sensor; intensity 0..1
    labels  uint8 [n]       index into CLASSES
    """

    points: NDArray[np.float32]
    labels: NDArray[np.uint8]


@dataclass(slots=True)
class Hits:
    """The nearest hit of every ray so far, [64, columns] each; distance is inf where there is none."""

    distance: Floats
    cosine: Floats
    reflectance: Floats
    dropout: Floats
    label: NDArray[np.uint8]

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Hits:
        """No hits yet."""
        zeros = [np.zeros(shape, np.float32) for _ in range(3)]
        return cls(np.full(shape, INFINITY), *zeros, label=np.zeros(shape, np.uint8))


@dataclass(frozen=True, slots=True)
class Materials:
    """Reflectances that one street has throughout."""

    asphalt: float
    paving: float
    grass: float
    marking: float = field(default=0.6)


def simulate_scan(seed: int, lidar: Lidar | None = None, style: StreetStyle | None = None) -> Scan:
    """Drive through a random street and take one scan; the same seed gives the same bits.

    Returns about 115,000 points, row of beams by row of beams from the top one down, as KITTI stores them.
    """
    lidar, style = lidar or Lidar(), style or StreetStyle()
    rng = np.random.default_rng(seed)
    scene = random_scene(rng, style)
    rays = random_rays(rng, lidar)
    hits = Hits.none(rays.way.x.shape)
    for shape in scene.shapes:
        cast(rng, rays, shape, hits)
    materials = Materials(rng.uniform(0.15, 0.35), rng.uniform(0.2, 0.45), rng.uniform(0.25, 0.5))
    cast_ground(rng, rays, scene.ground, materials, hits)
    return returns(rng, rays, scene, hits, lidar)


def cast(rng: Rng, rays: Rays, shape: Shape, hits: Hits) -> None:
    """Keep what of a shape is nearer than all that was hit before."""
    surface = shape.surface
    for window in rays.windows(shape.extent):
        way = type(rays.way)(*(axis[window] for axis in rays.way))
        passage = shape.passage(rays.origin, way)
        distance = passage.enter
        if np.isfinite(surface.density):
            distance = distance + rng.exponential(1 / surface.density, distance.shape).astype(np.float32)
            distance[distance > passage.leave] = INFINITY
        nearer = distance < hits.distance[window]
        np.copyto(hits.distance[window], distance, where=nearer)
        np.copyto(hits.cosine[window], passage.cosine, where=nearer)
        hits.reflectance[window][nearer] = surface.reflectance
        hits.dropout[window][nearer] = surface.dropout
        hits.label[window][nearer] = surface.label
        if surface.windows:
            panes(rng, shape, rays, window, nearer, hits)


def panes(
    rng: Rng, shape: Shape, rays: Rays, window: tuple[slice, slice], nearer: NDArray[np.bool_], hits: Hits
) -> None:
    """Make window panes of a regular grid on a facade: set back, dark, and mostly without a return."""
    period, storey, phase = rng.uniform(2.0, 4.0), rng.uniform(2.7, 3.3), rng.uniform(0, 3, 2)
    distance = hits.distance[window][nearer]
    x, y, z = (distance * axis[window][nearer] for axis in rays.way)
    yaw = getattr(shape, "yaw", 0.0)
    # On every face of a box one of the two coordinates is constant, so their sum runs along the face.
    along = (np.cos(yaw) - np.sin(yaw)) * x + (np.cos(yaw) + np.sin(yaw)) * y + phase[0]
    pane = (np.mod(along, period) < 0.4 * period) & (np.mod(z + phase[1], storey) < 0.5 * storey)
    hits.distance[window][nearer] = distance + np.where(pane, np.float32(rng.uniform(0.05, 0.3)), 0)
    hits.dropout[window][nearer] = np.where(pane, np.float32(rng.uniform(0.1, 0.6)), np.float32(0.01))
    hits.reflectance[window][nearer] *= np.where(pane, np.float32(rng.uniform(0.2, 1.0)), 1)


def cast_ground(rng: Rng, rays: Rays, ground: Ground, materials: Materials, hits: Hits) -> None:
    """Meet the raised level first (sidewalks and yards), then the carriageway, then the kerb's face between them."""
    row = int(np.argmax(rays.elevation < 0.06 + 0.0))
    origin = rays.origin
    way = type(rays.way)(*(axis[row:] for axis in rays.way))
    upper, lower = ground.meet(origin, way, ground.kerb_m), ground.meet(origin, way, 0.0)
    seen = np.minimum(upper, lower) < np.minimum(hits.distance[row:], 150)
    way = type(way)(*(axis[seen] for axis in way))
    upper, lower = upper[seen], lower[seen]
    lower = np.where(np.isfinite(lower), lower, upper + 50)
    outside = ground.outside(upper * way.x, upper * way.y)
    below = ground.outside(lower * way.x, lower * way.y)
    distance = np.where(outside > 0, upper, lower)
    face = (outside <= 0) & (below > 0)
    distance[face] = kerb_face(ground, upper[face], lower[face], way, face)
    raised = (outside > 0) | face
    x, y = distance * way.x, distance * way.y
    left = ground.streets[0].lateral(x, y) > 0
    walk = np.where(left, *(np.float32(s) for s in ground.sidewalk_m))
    grass = np.where(left, *(np.float32(s) for s in ground.grass_m))
    green = raised & (outside > walk) & (grass > 0)
    distance -= np.where(green, np.minimum(grass * rng.random(x.shape, np.float32) / np.maximum(-way.z, 0.05), 1.0), 0)
    label = np.where(green, Class.VEGETATION, np.where(raised, Class.SIDEWALK, Class.ROAD)).astype(np.uint8)
    reflectance = np.where(green, materials.grass, np.where(raised, materials.paving, materials.asphalt))
    reflectance[marked(ground, x, y) & ~raised] = materials.marking
    write(hits, row, seen, distance, np.where(face, np.float32(0.7), -way.z), reflectance.astype(np.float32), label)


def kerb_face(
    ground: Ground, upper: Floats, lower: Floats, way: tuple[Floats, Floats, Floats], face: NDArray[np.bool_]
) -> Floats:
    """Halve the way between the two levels until it ends at the carriageway's edge."""
    x, y = way[0][face], way[1][face]
    for _ in range(6):
        middle = (upper + lower) / 2
        on_road = ground.outside(middle * x, middle * y) <= 0
        upper, lower = np.where(on_road, middle, upper), np.where(on_road, lower, middle)
    return lower


def marked(ground: Ground, x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Where the middle line and the edge lines are painted."""
    main = ground.streets[0]
    lateral = main.lateral(x, y)
    middle = (np.abs(lateral) < 0.07) & (np.mod(x, 9) < 4)
    return middle | (np.abs(np.abs(lateral) - main.half_width + 0.3) < 0.06)


def write(
    hits: Hits, row: int, seen: NDArray[np.bool_], distance: Floats, cosine: Floats, reflectance: Floats,
    label: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Record hits of the ground, where nothing stands before it."""
    hits.distance[row:][seen] = distance
    hits.cosine[row:][seen] = cosine
    hits.reflectance[row:][seen] = reflectance
    hits.dropout[row:][seen] = 0
    hits.label[row:][seen] = label


def returns(rng: Rng, rays: Rays, scene: Scene, hits: Hits, lidar: Lidar) -> Scan:
    """Turn hits into points: lose the weak ones, add noise to ranges, and shade intensities."""
    shape = hits.distance.shape
    near = np.minimum(hits.distance, 1e4)
    strength = hits.reflectance * (0.02 + hits.cosine) * np.minimum(1, (25 / near) ** 2)
    lost = hits.dropout + np.exp(-strength * 60) + 0.004
    kept = (rng.random(shape, np.float32) >= lost) & (near < lidar.reach_m) & (near > lidar.nearest_m)
    kept &= ~car_body(rng, rays)
    noise = rng.normal(0, 1, (2, int(kept.sum()))).astype(np.float32)
    bias = np.repeat(rng.normal(0, 0.01, shape[0]).astype(np.float32), kept.sum(1))
    distance = hits.distance[kept] + noise[0] * np.float32(lidar.range_noise_m) + bias
    gain = np.repeat(rng.normal(1, 0.12, shape[0]).clip(0.4, 1.4).astype(np.float32), kept.sum(1))
    shade = hits.reflectance[kept] * (0.75 + 0.25 * np.minimum(hits.cosine[kept], 1)) * gain
    shade += noise[1] * np.float32(lidar.intensity_noise)
    shade[rng.random(shade.shape, np.float32) < 0.06] *= 0.1
    intensity = np.round(np.clip(shade, 0, 0.99), 2)
    own = [axis[kept] * distance for axis in rays.own]
    return Scan(np.stack([*own, intensity], axis=1, dtype=np.float32), hits.label[kept])


def car_body(rng: Rng, rays: Rays) -> NDArray[np.bool_]:
    """Rays that end on the car itself: its bonnet ahead, its boot and roof rack behind."""
    count = rays.way.x.shape[1]
    azimuth = np.linspace(-np.pi, np.pi, count, endpoint=False, dtype=np.float32)
    limit = np.full(count, -1.0, np.float32)
    for middle, width, rise in ((0.0, 0.3, 3.3), (-2.9, 0.15, 4.5), (2.9, 0.15, 3.0), (np.pi, 0.4, 2.0)):
        gap = np.abs(np.mod(azimuth - middle + np.pi, 2 * np.pi) - np.pi)
        lift = np.float32(np.deg2rad(rise * rng.uniform(0.6, 1.2)))
        limit = np.maximum(limit, np.deg2rad(-24.2) + lift * (gap < width * rng.uniform(0.7, 1.2)))
    return rays.elevation[:, None] < np.roll(limit, -(count // 2))[None, :]
