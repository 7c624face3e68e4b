"""NPY against numpy's own writer; and what numpy's own reader would run or allocate is refused."""

import io
import struct

import numpy as np
import pytest

from lacuna_service.errors import BadRequest, TooLarge
from tests.service.pointcloud_cases import XYZI, read, refusal, scan


def saved(array, version=None):
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version, allow_pickle=True)
    return out.getvalue()


def npy(header, data=b"", version=1):
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def plain(shape, descr="<f4", data=b""):
    return npy(f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}", data)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("points", [0, 1, 100])
def test_reads_what_numpy_writes(version, kind, order, points):
    array = np.asarray(scan(points).astype(kind), order=order)
    assert np.array_equal(read(saved(array, version), "npy"), scan(points))


def test_columns_by_position_follow_the_rule_of_raw_rows():
    cloud = scan(10, 5)
    expected = cloud[:, :4] / np.array([1, 1, 1, 255], "f4")
    assert np.array_equal(read(saved(cloud), "npy"), expected)
    assert np.array_equal(read(saved(scan(10, 6)), "npy", ("z", "y")), scan(10, 6)[:, [2, 1]])


@pytest.mark.parametrize("align", [False, True])
def test_structured_arrays_are_read_by_name(align):
    rows = np.zeros(7, np.dtype([("ring", "u1"), ("z", ">f8"), ("x", "f4"), ("y", "f2"), ("i", "u2")], align=align))
    rows["x"], rows["y"], rows["z"], rows["i"], rows["ring"] = 1, 2, 3, 65535, 31
    assert read(saved(rows), "npy", (*XYZI, "ring")).tolist() == [[1, 2, 3, 1, 31]] * 7


def test_limit_of_points_holds():
    for array in (scan(11), np.zeros(11, "f4, f4")):
        assert refusal(TooLarge, saved(array), "npy", limit_points=10) == "the cloud has 11 points, the limit is 10"


class Harmful:
    def __reduce__(self):
        return pytest.fail, ("the file was unpickled",)


MISTAKES = [
    (saved(np.array([[Harmful()] * 4])), "NPY: the type '|O' is not read here; store numbers, such as '<f4' (never"),
    (saved(np.zeros(3, [("x", "O")])), "NPY: the type '|O' is not read here"),
    (
        saved(np.zeros((2, 2), "f4")),
        "NPY: a cloud is an array of float32 or float64 [points, 3 or more columns], this one",
    ),
    (
        saved(np.zeros((2, 4), "i4")),
        "NPY: a cloud is an array of float32 or float64 [points, 3 or more columns], this one",
    ),
    (
        saved(np.zeros((2, 4, 1), "f4")),
        "NPY: a cloud is an array of float32 or float64 [points, 3 or more columns], this",
    ),
    (
        saved(np.float32(1)),
        "NPY: a cloud is an array of float32 or float64 [points, 3 or more columns], this one is float32",
    ),
    (
        saved(np.zeros((2, 2), "f4, f4, f4, f4")),
        "NPY: a structured array of points has one dimension, this one has the shape",
    ),
    (saved(np.zeros(2, [("xyz", "f4", (3,))])), "NPY: field 0 is no pair of a name and a number type"),
    (saved(np.zeros(2, "f4, f4")), "no column 'x': the model wants x, y, z, intensity; the file has f0, f1"),
    (saved(scan(2))[:-1], "NPY: shape (2, 4) of float32 takes 32 bytes, but 31 follow the header"),
    (saved(scan(2)) + b"\0", "NPY: shape (2, 4) of float32 takes 32 bytes, but 33 follow the header"),
    (plain("(999999999999999, 4)"), "NPY: shape (999999999999999, 4) of float32 takes 15999999999999984 bytes, but 0"),
    (plain("(10000000000000000, 4)"), "NPY: the shape must be whole numbers from 0 to 999999999999999"),
    (plain("(0x" + "f" * 9000 + ", 4)"), "NPY: the shape must be whole numbers from 0 to 999999999999999"),
    (plain("(-1, 4)"), "NPY: the shape must be whole numbers from 0 to 999999999999999"),
    (plain("(True, 4)"), "NPY: the shape must be whole numbers from 0 to 999999999999999"),
    (plain("[2, 4]"), "NPY: the shape must be whole numbers from 0 to 999999999999999"),
    (plain("(0, 1025)"), "NPY: 1025 columns, the limit is 1024"),
    (plain("(2, 4)", "S999999999"), "NPY: the type 'S999999999' is not read here"),
    (plain("(2, 4)", "<f16"), "NPY: the type '<f16' is not read here"),
    (plain("(2, 4)", 5), "NPY: the type must be a string or a list of fields"),
    (plain("(2,)", []), "NPY: a structured array has 1 to 1024 fields, this one has 0"),
    (plain("(2,)", [("x", 10**4000)]), "NPY: the type 'int' is not read here"),
    (plain("(2,)", [("x", "<f4", 1, 2)]), "NPY: field 0 is no pair of a name and a number type"),
    (npy("{'descr': '<f4'}"), "NPY: the header must be a literal of descr, fortran_order and shape, got"),
    (npy("__import__('os').abort()"), "NPY: the header must be a literal of descr, fortran_order and shape, got"),
    (npy("(" * 9000), "NPY: the header must be a literal of descr, fortran_order and shape, got '(((("),
    (npy("-" * 9000 + "1"), "NPY: the header must be a literal of descr, fortran_order and shape, got '----"),
    (npy("[" * 90 + "]" * 90), "NPY: the header must be a literal of descr, fortran_order and shape"),
    (npy("9" * 9000), "NPY: the header must be a literal of descr, fortran_order and shape"),
    (npy(" " * 20_000), "NPY: the header ends at byte 20011, but the file has 20011 bytes and a header at most 16384"),
    (npy("", version=2)[:10] + b"\xff\xff", "NPY: the header ends at byte 4294901773, but the file has 12 bytes"),
    (
        npy("", version=4),
        r"NPY: the file must begin with b'\x93NUMPY' and a version from 1 to 3, got b'\x93NUMPY\x04\x00'",
    ),
    (b"", r"NPY: the file must begin with b'\x93NUMPY' and a version from 1 to 3, got b''"),
]


@pytest.mark.parametrize(("body", "expected"), MISTAKES, ids=[str(at) for at in range(len(MISTAKES))])
def test_mistakes_are_told_with_their_numbers(body, expected):
    assert refusal(BadRequest, body, "npy").startswith(expected)
