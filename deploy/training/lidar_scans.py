"""Generated scans to train and judge `lidar-minkunet` on: an endless, reproducible stream, varied as real ones vary."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lacuna_client.simulate import Scan, simulate_scan
from lacuna_kernels import Value

FIRST_TRAINING_SEED = 1_000_000  # seeds below it are never trained on
INTENSITY = 3
Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A batch of clouds with the classes of their points, int64 [points]."""

    points: Value
    labels: Tensor


def augmented_scan(seed: int) -> Scan:
    """The scan of a training seed, changed in ways that leave the classes as they are."""
    rng = np.random.default_rng((seed, 1))
    scan = simulate_scan(seed)
    kept = surviving(rng, scan.points)
    points, labels = scan.points[kept], scan.labels[kept]
    points[:, :3] = moved(rng, points[:, :3])
    points[:, INTENSITY] = relit(rng, points[:, INTENSITY])
    return Scan(points.astype(np.float32), labels)


def surviving(rng: np.random.Generator, points: Floats) -> NDArray[np.bool_]:
    """Which points stay: single ones are lost, at times whole sectors and all beyond some distance."""
    kept: NDArray[np.bool_] = rng.random(len(points)) >= rng.choice([0.0, 0.05, 0.3], p=[0.5, 0.3, 0.2])
    if rng.random() < 0.2:
        azimuth = np.arctan2(points[:, 1], points[:, 0])
        kept &= np.abs(np.mod(azimuth - rng.uniform(0, 2 * np.pi), 2 * np.pi) - np.pi) < rng.uniform(1.5, 3.0)
    if rng.random() < 0.2:
        kept &= np.hypot(points[:, 0], points[:, 1]) < rng.uniform(25, 70)
    return kept


def moved(rng: np.random.Generator, xyz: Floats) -> Floats:
    """Turn about z, mirror, tilt by a degree or two, scale by a tenth, raise or lower the sensor, blur."""
    yaw, (pitch, roll) = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.015, 2)
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, pitch], [0, 1, roll], [-pitch, -roll, 1]])
    mirror = np.array([1, rng.choice([-1, 1]), 1])
    size = rng.uniform(0.92, 1.08) * np.array([1, 1, rng.uniform(0.95, 1.05)])
    changed: Floats = (xyz * mirror * size) @ (tilt @ turn).T
    changed[:, 2] += rng.normal(0, 0.15)
    return changed + rng.normal(0, rng.uniform(0, 0.015), changed.shape)


def relit(rng: np.random.Generator, intensity: Floats) -> Floats:
    """Change gain, offset and contrast; in a third of the scans nothing is left, so that shape decides."""
    if rng.random() < 0.35:
        return np.full_like(intensity, rng.uniform(0, 0.5))
    light = intensity ** rng.uniform(0.7, 1.4) * rng.uniform(0.6, 1.7) + rng.normal(0, 0.05)
    changed: Floats = np.clip(light + rng.normal(0, rng.uniform(0, 0.05), len(light)), 0, 1)
    return changed


def together(scans: list[Scan]) -> Labelled:
    """One batch of several scans."""
    offsets = torch.tensor([0, *itertools.accumulate(len(scan.points) for scan in scans)])
    points = torch.from_numpy(np.concatenate([scan.points for scan in scans]))
    labels = torch.from_numpy(np.concatenate([scan.labels for scan in scans])).long()
    return Labelled(Value(points, offsets), labels)


def training_batches(size: int, processes: int) -> Iterator[Labelled]:
    """Batches of augmented scans, for ever; the same ones in the same order on every run."""
    context, seeds = multiprocessing.get_context("spawn"), itertools.count(FIRST_TRAINING_SEED)
    with context.Pool(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        ahead = deque(pool.apply_async(augmented_scan, (next(seeds),)) for _ in range(8 * processes))
        while True:
            scans = [ahead.popleft().get() for _ in range(size)]
            ahead.extend(pool.apply_async(augmented_scan, (next(seeds),)) for _ in range(size))
            yield together(scans)
