"""PLY against trimesh, another reader and writer, and against files written here byte by byte."""

import io
import struct

import numpy as np
import pytest
import trimesh

from lacuna_service.codecs.labelled import encode_npy, encode_ply
from lacuna_service.errors import BadRequest, TooLarge
from tests.service.pointcloud_cases import XYZI, read, refusal, scan

XYZ = ("x", "y", "z")
ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
FACES = "element face 2\nproperty uchar kind\nproperty list ushort int vertex_indices\nproperty float area\n"


def header(elements, form="ascii"):
    return f"ply\nformat {form} 1.0\ncomment by hand\n{elements}end_header\n".encode()


def vertices(rows, kinds="float float float float", names=XYZI):
    properties = "".join(f"property {kind} {name}\n" for kind, name in zip(kinds.split(), names, strict=True))
    return f"element vertex {rows}\n{properties}"


def faces(order):
    return b"".join(
        struct.pack(f"{order}BH{len(corners)}if", 7, len(corners), *corners, 0.5)
        for corners in ([0, 1, 2], [0, 1, 2, 1])
    )


@pytest.mark.parametrize("encoding", ["binary", "ascii"])
@pytest.mark.parametrize("mesh", [False, True])
def test_reads_what_trimesh_writes(encoding, mesh):
    points = scan(30, 3)
    corners = np.arange(30).reshape(10, 3)
    body = (trimesh.Trimesh(points, corners, process=False) if mesh else trimesh.PointCloud(points)).export(
        file_type="ply", encoding=encoding
    )
    assert np.allclose(read(body, "ply", XYZ), points, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ORDERS)
@pytest.mark.parametrize("first", [True, False])
def test_vertices_are_found_before_and_after_elements_with_lists(form, first):
    order = ORDERS[form]
    parts = [(FACES, faces(order)), (vertices(5), scan(5).astype(f"{order}f4").tobytes())]
    elements, data = zip(*(parts[::-1] if first else parts), strict=True)
    assert np.array_equal(read(header("".join(elements), form) + b"".join(data), "ply"), scan(5))


@pytest.mark.parametrize("first", [True, False])
def test_text_vertices_are_found_before_and_after_elements_with_lists(first):
    rows = "\n".join(" ".join(map(repr, row)) for row in scan(5).tolist()) + "\n"
    parts = [(FACES, "7 3 0 1 2 0.5\n7 4 0 1 2 1 0.5\n"), (vertices(5), rows)]
    elements, data = zip(*(parts[::-1] if first else parts), strict=True)
    assert np.array_equal(read(header("".join(elements)) + "".join(data).encode(), "ply"), scan(5))


@pytest.mark.parametrize("form", ORDERS)
def test_every_type_is_read_at_its_width(form):
    kinds = ("char", "uchar", "short", "ushort", "int", "uint", "int8", "uint8", "int16", "uint16", "int32", "uint32")
    types = [np.dtype(f"{ORDERS[form]}{kind}") for kind in ("i1", "u1", "i2", "u2", "i4", "u4") * 2]
    names = tuple(f"field{at}" for at in range(12))
    values = np.array([tuple(range(12)), tuple(100 - at for at in range(12))], ",".join(kind.str for kind in types))
    ends = np.array([[1, 2, 3]] * 2, f"{ORDERS[form]}f8")
    data = b"".join(values[at].tobytes() + ends[at].tobytes() for at in range(2))
    elements = vertices(2, " ".join(kinds) + " double float64 double", (*names, *XYZ))
    cloud = read(header(elements, form) + data, "ply", (*XYZ, *names))
    assert cloud.tolist() == [[1, 2, 3, *range(12)], [1, 2, 3, *range(100, 88, -1)]]


def test_colours_of_bytes_become_fractions():
    elements = vertices(1, "float float float uchar uchar uchar", (*XYZ, "red", "green", "diffuse_blue"))
    assert read(header(elements) + b"1 2 3 255 0 51", "ply", (*XYZ, "r", "green", "blue"))[0].tolist() == (
        np.array([1, 2, 3, 1, 0, 0.2], np.float32).tolist()
    )


def test_windows_line_ends_in_the_header_do_not_move_the_data():
    text = header(vertices(3), "binary_little_endian").replace(b"\n", b"\r\n")
    assert np.array_equal(read(text + scan(3).tobytes(), "ply"), scan(3))


@pytest.mark.parametrize("form", ["ascii", *ORDERS])
def test_no_vertices_are_an_empty_cloud(form):
    assert read(header(vertices(0), form), "ply").shape == (0, 4)


def test_more_vertices_than_the_limit_are_refused():
    for form in ("ascii", *ORDERS):
        body = header(vertices(11), form) + bytes(11 * 16)
        assert refusal(TooLarge, body, "ply", limit_points=10) == "the cloud has 11 points, the limit is 10"


BINARY = "binary_little_endian"
MISTAKES = [
    (
        b"ply\n" + b"x" * 70_000,
        "PLY: the file must begin with the line 'ply' and have a line 'end_header' within 65536",
    ),
    (
        b"",
        "PLY: the file must begin with the line 'ply' and have a line 'end_header' within 65536 bytes; it has 0 bytes",
    ),
    (b"ply\nend_header\n", "PLY: the header has no line 'format ascii|binary_little_endian|binary_big_endian 1.0'"),
    (header("", "zip"), "PLY: header line 'format zip 1.0' is not understood"),
    (header("element vertex\n"), "PLY: header line 'element vertex' is not understood"),
    (header("element vertex -1\n"), "PLY: the count of element 'vertex' must be a whole number from 0"),
    (header("element vertex 1e9\n"), "PLY: the count of element 'vertex' must be a whole number from 0"),
    (header("property float x\n"), "PLY: header line 'property float x' is not understood"),
    (
        header(vertices(1, "half float float float")),
        "PLY: property 'half x' is not understood; known types are char, uchar",
    ),
    (
        header(FACES.replace("ushort int", "float int")),
        "PLY: property 'list float int vertex_indices' is not understood",
    ),
    (header("element vertex 1\n" + "property char x\n" * 1025), "PLY: header line 'property char x' is not understood"),
    (header(FACES), "PLY: no element 'vertex'; the file has face"),
    (header("element vertex 999999999999999\n"), "PLY: 'vertex' must have properties, and none of them a list"),
    (
        header("element vertex 1\nproperty list int int x\n"),
        "PLY: 'vertex' must have properties, and none of them a list",
    ),
    (header(vertices(2), BINARY) + bytes(31), "PLY: 2 vertices of 16 bytes take 32 bytes, but 31 are left for them"),
    (
        header(vertices(999999999999999), BINARY),
        "PLY: 999999999999999 vertices of 16 bytes take 15999999999999984 bytes",
    ),
    (header(vertices(2)) + b"1 2 3 4\n", "PLY: 2 vertices of 4 numbers and what comes before them take at least 15"),
    (
        header(vertices(2)) + b"1 2 3 4\n1 2 3      ",
        "PLY: 4 numbers a line are declared, but: the dtype passed requires 4",
    ),
    (header(vertices(1)) + b"1 2 3 oops", "PLY: 4 numbers a line are declared, but: could not convert string 'oops'"),
    (header(FACES + vertices(1)) + b"7 0 0\n7 0 0\n", "PLY: 1 points are declared, but the file ends after 0"),
    (header(FACES + vertices(0), BINARY) + b"\7\2\0\0\0\0", "PLY: the file ends within the 2 rows of 'face'"),
    (header(FACES + vertices(0), BINARY), "PLY: a list before the vertices is cut off or has the length 0"),
    (
        header(FACES.replace("ushort int", "int int") + vertices(0), BINARY) + b"\7\xff\xff\xff\xff",
        "PLY: a list before the vertices is cut off or has the length -1",
    ),
    (
        header("element far 999999999999999\nproperty double d\n" + vertices(1), BINARY) + bytes(16),
        "PLY: 1 vertices of 16 bytes take 16 bytes, but 0 are left for them",
    ),
    (
        header(vertices(1, names=(*XYZ, "ring"))) + b"1 2 3 4",
        "no column 'intensity': the model wants x, y, z, intensity",
    ),
]


@pytest.mark.parametrize(("body", "expected"), MISTAKES, ids=[str(at) for at in range(len(MISTAKES))])
def test_mistakes_are_told_with_their_numbers(body, expected):
    assert refusal(BadRequest, body, "ply").startswith(expected)


@pytest.mark.parametrize(("form", "steps"), [("ascii", 900_000), (BINARY, 2_700_000)])
def test_too_many_rows_before_the_vertices_are_refused_before_they_are_walked(form, steps):
    body = header(FACES.replace("face 2", "face 900000") + vertices(1), form) + bytes(10_000_000)
    assert refusal(TooLarge, body, "ply") == (
        f"PLY: stepping over the 900000 rows of 'face' before the vertices takes {steps} steps, "
        "the limit is 500000: put the element 'vertex' first"
    )


COLOURS = np.array([[255, 0, 0], [0, 255, 7], [1, 2, 3]], np.uint8)


@pytest.mark.parametrize("points", [0, 1, 50])
def test_labelled_cloud_is_read_back_by_trimesh_and_by_us(points):
    cloud, labels = scan(points), np.arange(points, dtype=np.int64) % 3
    body = encode_ply(cloud, labels, COLOURS)
    read_back = read(body, "ply", (*XYZ, "label", "red"))
    assert np.array_equal(read_back[:, :3], cloud[:, :3])
    assert np.array_equal(read_back[:, 3], labels)
    assert np.array_equal(read_back[:, 4], (COLOURS[labels, 0] / 255).astype("f4"))
    if points:
        other = trimesh.load(io.BytesIO(body), file_type="ply")
        assert np.array_equal(other.vertices.astype("f4"), cloud[:, :3])
        assert np.array_equal(other.colors[:, :3], COLOURS[labels])


@pytest.mark.parametrize("kind", ["i4", "i8", "u1"])
def test_labels_are_read_back_by_numpy(kind):
    labels = np.array([0, 4, 2], kind)
    loaded = np.load(io.BytesIO(encode_npy(labels)), allow_pickle=False)
    assert loaded.dtype == labels.dtype
    assert np.array_equal(loaded, labels)
