"""Point-cloud files that other libraries wrote, answered as `infer` answers the same points."""

import io
from collections.abc import Callable

import httpx
import laspy
import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from pypcd4 import PointCloud

from tests.service import networks
from tests.service.http_app import json_input
from tests.system.running import Running

Points = NDArray[np.float32]
MODEL = "/v2/models/tiny-minkunet"


def points() -> Points:
    """Coordinates in steps of 1/1024 m and intensities in steps of 1/65535, which every format holds exactly."""
    cloud = networks.cloud(300)
    cloud[:, :3] = np.round(cloud[:, :3] * 1024) / 1024
    cloud[:, 3] = np.round(cloud[:, 3] * 65535) / np.float64(65535)
    return cloud


def npy(cloud: Points) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, cloud)
    return buffer.getvalue()


def pcd(cloud: Points) -> bytes:
    buffer = io.BytesIO()
    PointCloud.from_xyzi_points(cloud).save(buffer)
    return buffer.getvalue()


def ply(cloud: Points) -> bytes:
    header = "ply\nformat ascii 1.0\nelement vertex {}\n" + "".join(
        f"property float {name}\n" for name in ("x", "y", "z", "intensity")
    )
    lines = "".join(" ".join(repr(float(value)) for value in point) + "\n" for point in cloud)
    return (header.format(len(cloud)) + "end_header\n" + lines).encode()


def las(cloud: Points, *, compressed: bool = False) -> bytes:
    file = laspy.LasData(laspy.LasHeader(point_format=3, version="1.2"))
    file.header.scales, file.header.offsets = np.full(3, 1 / 1024), np.zeros(3)
    file.x, file.y, file.z = cloud[:, :3].astype(np.float64).T
    file.intensity = np.round(cloud[:, 3] * np.float64(65535)).astype(np.uint16)
    buffer = io.BytesIO()
    file.write(buffer, do_compress=compressed)
    return buffer.getvalue()


def laz(cloud: Points) -> bytes:
    return las(cloud, compressed=True)


FILES: dict[str, tuple[Callable[[Points], bytes], str]] = {
    "bin": (lambda cloud: cloud.tobytes(), "application/octet-stream"),
    "npy": (npy, "application/x-npy"),
    "pcd": (pcd, "model/x-pcd"),
    "ply": (ply, "application/x-ply"),
    "las": (las, "application/vnd.las"),
    "laz": (laz, "application/vnd.laszip"),
}


@pytest.fixture(scope="module")
def labels(server: Running) -> list[int]:
    answer = httpx.post(f"{server.url}{MODEL}/infer", json={"inputs": [json_input("POINTS", points())]}).json()
    (found,) = [output["data"] for output in answer["outputs"] if output["name"] == "labels"]
    assert len(set(found)) > 1
    return list(found)


@pytest.mark.parametrize("form", FILES)
def test_a_file_is_answered_as_its_points_are(server: Running, labels: list[int], form: str) -> None:
    write, content_type = FILES[form]
    body = write(points())
    by_type = httpx.post(f"{server.url}{MODEL}/pointcloud", content=body, headers={"Content-Type": content_type})
    by_query = httpx.post(f"{server.url}{MODEL}/pointcloud?format={form}", content=body)
    for response in (by_type, by_query):
        assert response.status_code == 200, response.text
        assert response.json()["labels"] == labels


def test_a_coloured_ply_is_read_by_others(server: Running, labels: list[int]) -> None:
    cloud = points()
    response = httpx.post(f"{server.url}{MODEL}/pointcloud", content=cloud.tobytes(), headers={"Accept": "model/ply"})
    mesh = trimesh.load(io.BytesIO(response.content), file_type="ply")
    assert np.array_equal(mesh.vertices, cloud[:, :3])
    assert [tuple(colour[:3]) for colour in mesh.colors] == [networks.COLOURS[label] for label in labels]
