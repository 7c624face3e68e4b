"""LiDAR scans that are new every time, made of some that were recorded."""

from collections.abc import Iterator, Sequence
from itertools import count
from math import cos, sin
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TURN, SHIFT_M, NOISE_M = 0.1, 1.0, 0.01
"""By how much a frame differs from its scan: a turn about z of up to so many radians, a shift, and noise (sigma)."""
SWEEP_SECONDS, SWEEP_M = 0.05, 0.5
"""Between neighbouring sweeps."""


def read(path: Path) -> Tensor:
    """A scan of KITTI: fp32 [points, 4], x, y, z in metres and intensity."""
    return torch.from_numpy(np.fromfile(path, np.float32).reshape(-1, 4))


def frames(scans: Sequence[Tensor], seed: int = 0) -> Iterator[Tensor]:
    """Endless copies of the scans in turn, each turned, shifted and with noise, so that no frame comes twice."""
    for index in count():
        scan, generator = scans[index % len(scans)], torch.Generator().manual_seed(seed + index)
        angle, *shift = (2 * torch.rand(4, generator=generator, dtype=torch.float64) - 1).tolist()
        turn = torch.tensor([[cos(TURN * angle), -sin(TURN * angle)], [sin(TURN * angle), cos(TURN * angle)]])
        frame = scan.clone()
        frame[:, :2] = scan[:, :2] @ turn.float().T
        frame[:, :3] += SHIFT_M * torch.tensor(shift) + NOISE_M * torch.randn(len(scan), 3, generator=generator)
        yield frame


def sweeps(points: Tensor, number: int) -> Tensor:
    """As if the sensor had driven on along x: fp32 [number * points, 5], the last column how long ago in seconds."""
    back = torch.arange(number, dtype=torch.float32).repeat_interleave(len(points))
    gone = torch.stack([SWEEP_M * back, torch.zeros_like(back), torch.zeros_like(back)], 1)
    many = points.repeat(number, 1)
    return torch.cat([many[:, :3] - gone, many[:, 3:4], SWEEP_SECONDS * back[:, None]], 1)
