"""How good a labelling is: intersection over union by class, a per-point baseline, and shares on a real scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from lacuna_client.simulate import CLASSES, Scan, simulate_scan

FIRST_BASELINE_SEED = 2_000_000
GROUND = [CLASSES.index("road"), CLASSES.index("sidewalk")]
Floats = NDArray[np.float32]
Labels = NDArray[np.integer]


def confusion(truth: Labels, guess: Labels) -> NDArray[np.int64]:
    """Counts [classes, classes]: row truth, column guess."""
    count = len(CLASSES)
    return np.bincount(truth.astype(np.int64) * count + guess, minlength=count * count).reshape(count, count)


def intersection_over_union(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU by class, from counts over all scans together."""
    hit = np.diag(counts)
    shares: NDArray[np.float64] = hit / np.maximum(counts.sum(0) + counts.sum(1) - hit, 1)
    return shares


def point_features(points: Floats) -> Floats:
    """What a per-point classifier sees: z, range, intensity."""
    return np.stack([points[:, 2], np.linalg.norm(points[:, :3], axis=1), points[:, 3]], axis=1)


def baseline(held_out: list[Scan], training_scans: int = 40, points_each: int = 10_000) -> float:
    """Mean IoU of gradient-boosted trees on z, range and intensity, trained on scans of their own."""
    rng, features, labels = np.random.default_rng(0), [], []
    for seed in range(FIRST_BASELINE_SEED, FIRST_BASELINE_SEED + training_scans):
        scan = simulate_scan(seed)
        rows = rng.choice(len(scan.points), points_each, replace=False)
        features.append(point_features(scan.points[rows]))
        labels.append(scan.labels[rows])
    trees = HistGradientBoostingClassifier(max_iter=200, max_leaf_nodes=63, random_state=0)
    trees.fit(np.concatenate(features), np.concatenate(labels))
    counts = sum(confusion(scan.labels, trees.predict(point_features(scan.points))) for scan in held_out)
    return float(intersection_over_union(np.asarray(counts)).mean())


@dataclass(frozen=True, slots=True)
class RealShares:
    """Shares of a real scan's points within 15 m of the sensor that are called road or sidewalk.

    low  of those within 0.25 m of the ground plane: should be near 1;  high  of those over 1 m above it: near 0
    """

    low: float
    high: float


def real_shares(points: Floats, labels: Labels) -> RealShares:
    """Judge labels of a scan without a truth by a plane fitted to its ground."""
    plane = ground_plane(points)
    height = points[:, 2] - (plane[0] * points[:, 0] + plane[1] * points[:, 1] + plane[2])
    near = np.hypot(points[:, 0], points[:, 1]) < 15
    ground = np.isin(labels, GROUND)
    low, high = near & (np.abs(height) < 0.25), near & (height > 1)
    return RealShares(float(ground[low].mean()), float(ground[high].mean()))


def ground_plane(points: Floats, tries: int = 500, width_m: float = 0.1) -> NDArray[np.float64]:
    """RANSAC: (a, b, c) of the nearly level plane z = a x + b y + c with most points within width_m, then refined."""
    rng = np.random.default_rng(0)
    near = points[np.hypot(points[:, 0], points[:, 1]) < 25, :3].astype(np.float64)
    design = np.concatenate([near[:, :2], np.ones((len(near), 1))], axis=1)
    best = np.zeros(len(near), np.bool_)
    for _ in range(tries):
        rows = rng.integers(len(near), size=3)
        if abs(np.linalg.det(design[rows])) < 1e-3:
            continue
        plane = np.linalg.solve(design[rows], near[rows, 2])
        close = np.abs(design @ plane - near[:, 2]) < width_m
        if np.hypot(*plane[:2]) < 0.2 and close.sum() > best.sum():
            best = close
    fitted: NDArray[np.float64] = np.linalg.lstsq(design[best], near[best, 2], rcond=None)[0]
    return fitted
