"""Facts about generated scans."""

import math

import numpy as np
import pytest

from lacuna_client.simulate import CLASSES, Lidar, StreetStyle, simulate_scan
from lacuna_client.simulate.ground import Ground, Street
from lacuna_client.simulate.lidar import random_rays
from lacuna_client.simulate.shapes import Cylinder, Ellipsoid, Point, Surface, Vector, box

SEEDS = range(8)
STONE = Surface(2, 0.5)


@pytest.fixture(scope="module")
def scans():
    return [simulate_scan(seed) for seed in SEEDS]


def test_same_seed_gives_the_same_bits(scans):
    again = simulate_scan(3)
    assert again.points.tobytes() == scans[3].points.tobytes()
    assert again.labels.tobytes() == scans[3].labels.tobytes()


def test_other_seeds_give_other_streets(scans):
    assert len({scan.points.tobytes() for scan in scans}) == len(scans)


def test_points_are_finite_float32_with_a_label_each(scans):
    for scan in scans:
        assert scan.points.dtype == np.float32 and scan.labels.dtype == np.uint8
        assert scan.points.shape == (len(scan.labels), 4)
        assert np.isfinite(scan.points).all()
        assert scan.labels.max() < len(CLASSES)


def test_scans_have_as_many_points_as_the_sensor_gives(scans):
    assert all(90_000 < len(scan.points) < 64 * Lidar().columns for scan in scans)


def test_every_class_appears_and_the_ground_is_the_largest_part(scans):
    counts = sum(np.bincount(scan.labels, minlength=len(CLASSES)) for scan in scans)
    assert counts.min() > 200
    assert counts[:2].sum() > 0.3 * counts.sum()


def test_road_lies_below_the_sensor_at_its_height(scans):
    for scan in scans:
        near = (scan.labels == CLASSES.index("road")) & (np.linalg.norm(scan.points[:, :2], axis=1) < 8)
        assert abs(np.median(scan.points[near, 2]) + Lidar().height_m) < 0.2


def test_sidewalks_are_raised_above_the_road_beside_them(scans):
    rises = []
    for scan in scans:
        x, y, z = scan.points[:, :3].T
        band = (np.abs(x) < 4) & (np.abs(y) < 10)
        road, walk = (z[band & (scan.labels == CLASSES.index(name))] for name in ("road", "sidewalk"))
        if len(road) > 500 and len(walk) > 500:
            rises.append(np.median(walk) - np.median(road))
    assert len(rises) >= 3 and np.median(rises) > 0.03


def test_ranges_and_intensities_are_within_the_sensors(scans):
    lidar = Lidar()
    for scan in scans:
        distance = np.linalg.norm(scan.points[:, :3], axis=1)
        assert distance.min() > lidar.nearest_m - 0.2 and distance.max() < lidar.reach_m + 0.2
        assert scan.points[:, 3].min() >= 0 and scan.points[:, 3].max() <= 0.99
        assert np.allclose(scan.points[:, 3] * 100, np.round(scan.points[:, 3] * 100), atol=1e-3)


def test_beams_lie_on_64_cones_from_the_top_down(scans):
    x, y, z, _ = scans[0].points.T
    elevation = np.degrees(np.arctan2(z, np.hypot(x, y)))
    assert -25.5 < elevation.min() < -22 and 2 < elevation.max() < 3.5
    turns = np.flatnonzero(np.diff(np.mod(np.arctan2(y, x), 2 * np.pi)) < -np.pi) + 1
    rows = np.array([np.median(row) for row in np.split(elevation, turns)])
    assert len(rows) == 64 and (np.diff(rows) < 0).all()


def test_style_and_sensor_are_honoured():
    empty = StreetStyle(parked_chance=(0, 0), driving_per_street=0, persons_mean=0)
    scan = simulate_scan(1, Lidar(columns=500, reach_m=30), empty)
    present = {CLASSES[label] for label in np.unique(scan.labels)}
    assert "vehicle" not in present and "person" not in present
    assert len(scan.points) < 64 * 500 and np.linalg.norm(scan.points[:, :3], axis=1).max() < 30.2


def ray(x, y, z):
    norm = math.sqrt(x * x + y * y + z * z)
    return Vector(*(np.array([c / norm], np.float32) for c in (x, y, z)))


@pytest.mark.parametrize(
    ("shape", "enter", "leave"),
    [
        (box(Point(10, 0, 0), Point(2, 3, 1), 0.0, STONE), 8, 12),
        (box(Point(10, 0, 0), Point(2, 3, 1), math.pi / 2, STONE), 7, 13),
        (Ellipsoid(Point(10, 0, 0), Point(2, 1, 1), STONE), 8, 12),
        (Cylinder(10, 0, 0.5, -1, 1, STONE), 9.5, 10.5),
    ],
    ids=["box", "turned box", "ellipsoid", "cylinder"],
)
def test_a_ray_enters_and_leaves_a_shape_where_geometry_says(shape, enter, leave):
    hit = shape.passage(Point(0, 0, 0), ray(1, 0, 0))
    assert hit.enter[0] == pytest.approx(enter, abs=1e-4) and hit.leave[0] == pytest.approx(leave, abs=1e-4)
    assert np.isinf(shape.passage(Point(0, 0, 0), ray(-1, 0, 0)).enter[0])
    assert np.isinf(shape.passage(Point(0, 0, 0), ray(1, 0, 0.5)).enter[0])


def test_a_ray_meets_flat_and_tilted_ground_exactly():
    flat = Ground((Street(0, 0, 0, 0, 4),), 0.15, 5, (2, 2), (0, 0), (0, 0, 0, 0, 0), 0, ())
    tilted = Ground((Street(0, 0, 0, 0, 4),), 0.15, 5, (2, 2), (0, 0), (0.1, 0, 0, 0, 0), 0, ())
    down = ray(1, 0, -0.1)
    for ground, x in ((flat, 20.0), (tilted, 10.0)):
        distance = ground.meet(Point(0, 0, 2), down, 0.0)
        assert distance[0] * down.x[0] == pytest.approx(x, rel=1e-5)
    assert np.isinf(flat.meet(Point(0, 0, 2), ray(1, 0, 0.1), 0.0)[0])


def test_lateral_distance_undoes_place_on_a_bend():
    street = Street(3, -2, 0.4, 0.02, 4)
    for station, lateral in ((0.0, 0.0), (20.0, 3.0), (-30.0, -5.0)):
        x, y, _ = street.place(station, lateral)
        found = street.lateral(np.array([x], np.float32), np.array([y], np.float32))
        assert found[0] == pytest.approx(lateral, abs=1e-3)


def test_windows_miss_no_ray_that_hits():
    """The search for the rays that may meet a shape is a short cut: casting all rays finds no more."""
    rng = np.random.default_rng(0)
    rays = random_rays(rng, Lidar(columns=720))
    for _ in range(100):
        distance, angle = rng.uniform(3, 60), rng.uniform(-math.pi, math.pi)
        centre = Point(distance * math.cos(angle), distance * math.sin(angle), rng.uniform(-1, 4))
        half = Point(*rng.uniform(0.1, 6, 3))
        shape = box(centre, half, angle + 1, STONE) if rng.random() < 0.5 else Ellipsoid(centre, half, STONE)
        everywhere = np.isfinite(shape.passage(rays.origin, rays.way).enter)
        covered = np.zeros_like(everywhere)
        for window in rays.windows(shape.extent):
            covered[window] = True
        assert not (everywhere & ~covered).any()
