"""A small scan, and one way to decode it, shared by the tests of every point-cloud format."""

import numpy as np
import pytest

from lacuna_service.codecs.pointcloud import decode
from lacuna_service.errors import ServiceError

XYZI = ("x", "y", "z", "intensity")


def scan(points=200, columns=4, seed=0):
    """Points [n, columns] float32: coordinates of tens of metres, negative too, and the rest in 0..1."""
    rng = np.random.default_rng(seed)
    return np.hstack([rng.normal(0, 20, (points, 3)), rng.random((points, columns - 3))]).astype(np.float32)


def read(body, name, wanted=XYZI, columns_in_bin=None, limit_points=100_000):
    cloud = decode(body, name, wanted, columns_in_bin=columns_in_bin, limit_points=limit_points)
    assert cloud.columns == wanted
    assert cloud.points.dtype == np.float32
    assert cloud.points.flags.c_contiguous
    assert cloud.points.shape == (len(cloud.points), len(wanted))
    return cloud.points


def refusal(kind, body, name, **options):
    """The text of the error, which must be of exactly this kind."""
    with pytest.raises(ServiceError) as caught:
        read(body, name, **options)
    assert caught.type is kind, caught.value
    return str(caught.value)
