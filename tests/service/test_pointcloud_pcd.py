"""PCD against pypcd4, another reader and writer, and against files written here byte by byte."""

import io
import struct

import lzf
import numpy as np
import pypcd4
import pytest

from lacuna_service.errors import BadRequest, TooLarge
from tests.service.pointcloud_cases import XYZI, read, refusal, scan

STORAGES = ("ascii", "binary", "binary_compressed")


def written(points, names=XYZI, types=None, storage="binary", count=None):
    cloud = pypcd4.PointCloud.from_points(points, names, types or [np.float32] * len(names), count)
    out = io.BytesIO()
    cloud.save(out, getattr(pypcd4.Encoding, storage.upper()))
    return out.getvalue()


def pcd(data=b"", storage="binary", points="1", **changes):
    lines = {
        "VERSION": ".7",
        "FIELDS": "x y z intensity",
        "SIZE": "4 4 4 4",
        "TYPE": "F F F F",
        "COUNT": "1 1 1 1",
        "WIDTH": points,
        "HEIGHT": "1",
        "VIEWPOINT": "0 0 0 1 0 0 0",
        "POINTS": points,
        "DATA": storage,
    } | changes
    return "".join(f"{key} {value}\n" for key, value in lines.items() if value is not None).encode() + data


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("points", [1, 2, 3, 257])
def test_reads_what_pypcd4_writes(storage, points):
    cloud = scan(points)
    tolerance = 1e-9 if storage == "ascii" else 0  # pypcd4 writes ten digits after the point
    assert np.allclose(read(written(cloud, storage=storage), "pcd"), cloud, rtol=0, atol=tolerance)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("kind", ["f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_every_type_and_storage_agrees_with_numpy(storage, kind):
    dtype = np.dtype(kind)
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    ring = np.array([limits.min, 0, 1, 77, limits.max], dtype)
    cloud = scan(5)
    names = ("x", "skipped", "y", "ring", "z")
    columns = [cloud[:, 0], np.arange(5, dtype="u2"), cloud[:, 1], ring, cloud[:, 2]]
    body = written(columns, names, [column.dtype for column in columns], storage)
    with np.errstate(over="ignore"):
        expected = np.column_stack([cloud[:, :3], ring.astype("f4")])
    assert np.allclose(read(body, "pcd", ("x", "y", "z", "ring")), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("storage", STORAGES)
def test_fields_of_several_values_are_stepped_over(storage):
    rows = np.zeros(3, "f4, (5,)u2, f4, f4, f8")
    for at, name in enumerate(["f0", "f2", "f3", "f4"]):
        rows[name] = scan(3)[:, at]
    rows["f1"] = 9
    packed = lzf_of(b"".join(rows[name].tobytes() for name in rows.dtype.names))
    text = "\n".join(" ".join(map(repr, np.hstack([*row]).tolist())) for row in rows)
    data = {"ascii": text.encode(), "binary": rows.tobytes(), "binary_compressed": packed}[storage]
    layout = {"FIELDS": "x histogram y z i", "SIZE": "4 2 4 4 8", "TYPE": "F U F F F", "COUNT": "1 5 1 1 1"}
    assert np.array_equal(read(pcd(data, storage, "3", **layout), "pcd"), scan(3))


def lzf_of(plain):
    """LZF of plain runs only: up to 32 bytes each behind a byte of their length less one."""
    packed = b"".join(bytes([len(plain[at : at + 32]) - 1]) + plain[at : at + 32] for at in range(0, len(plain), 32))
    return struct.pack("<II", len(packed), len(plain)) + packed


@pytest.mark.parametrize("storage", STORAGES)
def test_no_points_is_an_empty_cloud(storage):
    assert read(pcd(storage=storage, points="0"), "pcd").shape == (0, 4)
    assert read(pcd(struct.pack("<II", 0, 0), "binary_compressed", "0"), "pcd").shape == (0, 4)


def test_header_may_leave_out_what_follows_from_the_rest():
    cloud = scan(6)
    grid = pcd(cloud.tobytes(), WIDTH="3", HEIGHT="2", POINTS=None, COUNT=None, VIEWPOINT=None, VERSION=None)
    assert np.array_equal(read(b"# .PCD v.7 - \xff\r\n\r\n" + grid, "pcd"), cloud)
    assert np.array_equal(read(pcd(cloud.tobytes(), points="6", WIDTH=None, HEIGHT=None), "pcd"), cloud)


def test_text_of_windows_and_blank_lines_are_read():
    body = pcd(b"1 2 3 0.5\r\n\r\n  nan\t-inf 1e3 1\r\n\n", "ascii", "2").replace(b"ascii\n", b"ascii\r\n")
    expected = np.array([[1, 2, 3, 0.5], [np.nan, -np.inf, 1000, 1]], np.float32)
    assert np.array_equal(read(body, "pcd"), expected, equal_nan=True)


def test_whole_intensity_in_text_is_scaled_by_its_declared_type():
    body = pcd(b"1 2 3 255", "ascii", SIZE="4 4 4 1", TYPE="F F F U")
    assert read(body, "pcd")[0, 3] == 1


def test_what_follows_compressed_data_is_ignored():
    plain = scan(3).T.tobytes()
    assert np.array_equal(read(pcd(lzf_of(plain) + b"padding", "binary_compressed", "3"), "pcd"), scan(3))


ROWS = scan(2).tobytes()
MISTAKES = [
    (pcd(ROWS, points="3"), "PCD: 3 points of 16 bytes take 48 bytes, but 32 follow the header"),
    (pcd(ROWS + b"\n", points="2"), "PCD: 2 points of 16 bytes take 32 bytes, but 33 follow the header"),
    (
        pcd(points="999999999999999"),
        "PCD: 999999999999999 points of 16 bytes take 15999999999999984 bytes, but 0 follow",
    ),
    (pcd(points="-1"), "PCD: WIDTH must be a whole number from 0 to 999999999999999, got '-1'"),
    (pcd(points="1e9"), "PCD: WIDTH must be a whole number from 0 to 999999999999999, got '1e9'"),
    (pcd(points="1" * 500), "PCD: WIDTH must be a whole number from 0 to 999999999999999, got '1111"),
    (pcd(POINTS="1 1"), "PCD: POINTS must be a whole number from 0 to 999999999999999, got '1 1'"),
    (pcd(POINTS="7"), "PCD: POINTS is 7, but WIDTH 1 x HEIGHT 1 is 1"),
    (pcd(POINTS=None, WIDTH=None), "PCD: the header gives neither POINTS nor WIDTH and HEIGHT"),
    (pcd(COUNT="1 1 1 1000000000"), "PCD: a point takes 4000000012 bytes, the limit is 65536"),
    (pcd(COUNT="1 1 1 0"), "PCD: COUNT of field 'intensity' must be at least 1, got 0"),
    (pcd(COUNT="1 1 1 -4"), "PCD: COUNT of field 'intensity' must be a whole number from 0"),
    (pcd(COUNT="1 1 1"), "PCD: 4 FIELDS need as many entries of COUNT, there are 3"),
    (pcd(SIZE=None), "PCD: 4 FIELDS need as many entries of SIZE, there are 0"),
    (pcd(SIZE="4 4 4 3"), "PCD: field 'intensity' has TYPE 'F' SIZE '3'; known are F 4 8, I and U 1 2 4 8"),
    (pcd(SIZE="4 4 4 1"), "PCD: field 'intensity' has TYPE 'F' SIZE '1'; known are F 4 8, I and U 1 2 4 8"),
    (pcd(FIELDS=""), "PCD: FIELDS must name 1 to 1024 fields, it names 0"),
    (pcd(FIELDS="x " * 1025), "PCD: FIELDS must name 1 to 1024 fields, it names 1025"),
    (pcd(DATA="zip"), "PCD: DATA is 'zip', known are ascii, binary, binary_compressed"),
    (
        pcd(ROWS[:16], FIELDS="x y z ring"),
        "no column 'intensity': the model wants x, y, z, intensity; the file has x, y, z, ring",
    ),
    (b"BOGUS " + b"\xff" * 300 + pcd(), "PCD: unknown header line 'BOGUS"),
    (b"# .PCD\nVERSION .7\n", "PCD: no DATA line in the first 18 bytes"),
    (b"# .PCD\n" * 100_000, "PCD: no DATA line in the first 65536 bytes"),
    (b"", "PCD: no DATA line in the first 0 bytes"),
    (pcd(b"1 2 3", "ascii"), "PCD: 1 points of 4 numbers take at least 7 characters, but 5 follow the header"),
    (
        pcd(b"1 2 three 4", "ascii"),
        "PCD: 4 numbers a line are declared, but: could not convert string 'three' to float64",
    ),
    (
        pcd(b"1 2 3 4 5", "ascii"),
        "PCD: 4 numbers a line are declared, but: the dtype passed requires 4 columns but 5 were",
    ),
    (pcd(b"1 2 3 4\n1 2 3 4", "ascii"), "PCD: POINTS is 1, but more lines follow"),
    (pcd(b"1 2 3 4\n      ", "ascii", "2"), "PCD: 2 points of 4 numbers take at least 15 characters, but 14 follow"),
    (pcd(b"1 2 3 4\n       ", "ascii", "2"), "PCD: 2 points are declared, but the file ends after 1"),
    (pcd(b"\n" * 20_000, "ascii"), "the file has more than 10000 blank lines"),
    (pcd(b"1 " * 40_000, "ascii"), "a line of the file is longer than 65536 bytes"),
    (
        pcd(b"1 2 3 256", "ascii", SIZE="4 4 4 1", TYPE="F F F U"),
        "PCD: 'intensity' holds 256, but uint8 goes from 0 to 255",
    ),
    (pcd(b"1 2 3 nan", "ascii", TYPE="F F F I"), "PCD: 'intensity' holds nan, but int32 goes from"),
    (pcd(b"\0\0\0", "binary_compressed"), "PCD: compressed data begins with two sizes of 4 bytes, but 3 bytes follow"),
    (pcd(struct.pack("<II", 9, 16), "binary_compressed"), "PCD: 9 compressed bytes are declared, but 0 follow"),
    (
        pcd(struct.pack("<II", 0, 17), "binary_compressed"),
        "PCD: 1 points of 16 bytes take 16 bytes, but the compressed data is declared to unpack to 17",
    ),
    (
        pcd(struct.pack("<III", 4, 16_000, 0), "binary_compressed", "1000"),
        "PCD: 4 bytes of LZF cannot unpack to 16000",
    ),
    (
        pcd(struct.pack("<II", 2, 16) + b"\x00a", "binary_compressed"),
        "PCD: the compressed data should unpack to 16 bytes, it holds 1",
    ),
    (
        pcd(lzf_of(bytes(20)).replace(b"\x14", b"\x10"), "binary_compressed"),
        "PCD: the compressed data should unpack to 16 bytes, it holds more",
    ),
    (pcd(struct.pack("<II", 3, 16) + b"\xff\xff\xff", "binary_compressed"), "PCD: the compressed data"),
]


@pytest.mark.parametrize(("body", "expected"), MISTAKES, ids=[str(at) for at in range(len(MISTAKES))])
def test_mistakes_are_told_with_their_numbers(body, expected):
    assert refusal(BadRequest, body, "pcd").startswith(expected)


def test_more_points_than_the_limit_are_refused_in_every_storage():
    cloud = scan(11)
    for storage in STORAGES:
        expected = "the cloud has 11 points, the limit is 10"
        assert refusal(TooLarge, written(cloud, storage=storage), "pcd", limit_points=10) == expected


def test_compressed_data_may_not_unpack_to_more_than_the_limit_is_worth():
    plain = bytes(100 * 2000)
    packed = lzf.compress(plain)
    body = pcd(
        struct.pack("<II", len(packed), len(plain)) + packed,
        "binary_compressed",
        "100",
        **{"FIELDS": "x y", "TYPE": "F F", "SIZE": "4 4", "COUNT": "1 499"},
    )
    assert refusal(TooLarge, body, "pcd", limit_points=100) == (
        "the compressed points unpack to 200000 bytes, the limit is 12800 (128 for each of 100 points); "
        "leave unused fields out"
    )
