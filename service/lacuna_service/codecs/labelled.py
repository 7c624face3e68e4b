"""Files of an answer: the labels of a cloud alone as .npy, or painted on its points as PLY."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERTEX = np.dtype(
    [*((axis, "<f4") for axis in "xyz"), *((c, "u1") for c in ("red", "green", "blue")), ("label", "<i4")]
)
PLY_HEADER = """ply
format binary_little_endian 1.0
element vertex {points}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
property int label
end_header
"""


def encode_npy(labels: NDArray[np.integer[Any]]) -> bytes:
    """One label per point, [n], as an .npy of the labels' own integer type."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(labels))
    return b"".join([header.getvalue(), np.ascontiguousarray(labels).data])


def encode_ply(points: NDArray[np.float32], labels: NDArray[np.integer[Any]], colours: NDArray[np.uint8]) -> bytes:
    """A binary little-endian PLY of x y z, the colour of each label, and the label.

    points   [n, 3 and more]  metres; the first three columns are written
    labels   [n]              rows of `colours`
    colours  [classes, 3]     red green blue
    """
    vertex = np.empty(len(points), VERTEX)
    columns = [*points[:, :3].T, *colours[labels].T, labels]
    for name, values in zip(VERTEX.names or (), columns, strict=True):
        vertex[name] = values
    return PLY_HEADER.format(points=len(points)).encode("ascii") + vertex.tobytes()
