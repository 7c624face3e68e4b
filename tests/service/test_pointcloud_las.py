"""LAS and LAZ against laspy, another reader and writer."""

import io
import resource
import struct
import sys

import numpy as np
import pytest

from lacuna_service.errors import BadRequest, TooLarge, UnsupportedMedia
from tests.service.pointcloud_cases import XYZI, read, refusal, scan

laspy = pytest.importorskip("laspy")
lazrs = pytest.importorskip("lazrs")

FORMATS = range(11)
RGB_FORMATS = (2, 3, 5, 7, 8, 10)


def survey(point_format, points=200, **values):
    las = laspy.LasData(laspy.LasHeader(point_format=point_format))
    las.header.scales, las.header.offsets = [0.001, 0.002, 0.004], [10, -20, 0.5]
    cloud = scan(points).astype(np.float64)
    las.x, las.y, las.z = cloud[:, 0], cloud[:, 1], cloud[:, 2]
    las.intensity = (cloud[:, 3] * 65535).astype(np.uint16)
    for name, column in values.items():
        setattr(las, name, column)
    return las


def written(las, packed=False):
    out = io.BytesIO()
    las.write(out, do_compress=packed, laz_backend=laspy.LazBackend.Lazrs if packed else None)
    return out.getvalue()


def expected(las):
    return np.column_stack([las.x, las.y, las.z, las.intensity / 65535]).astype(np.float32)


@pytest.mark.parametrize("packed", [False, True], ids=["las", "laz"])
@pytest.mark.parametrize("point_format", FORMATS)
@pytest.mark.parametrize("points", [1, 200])
def test_reads_what_laspy_writes(point_format, packed, points):
    las = survey(point_format, points)
    las.add_extra_dim(laspy.ExtraBytesParams("extra", "f8"))
    assert np.array_equal(read(written(las, packed), "laz" if packed else "las"), expected(las))


@pytest.mark.parametrize("packed", [False, True], ids=["las", "laz"])
@pytest.mark.parametrize("point_format", RGB_FORMATS)
def test_colours_become_fractions(point_format, packed):
    level = np.arange(200, dtype=np.uint16) * 300
    las = survey(point_format, red=level, green=level + 1, blue=level + 2)
    cloud = read(written(las, packed), "las", ("red", "green", "blue"))
    assert np.array_equal(cloud, (np.column_stack([level, level + 1, level + 2]) / 65535).astype("f4"))


@pytest.mark.parametrize("packed", [False, True], ids=["las", "laz"])
@pytest.mark.parametrize("point_format", [3, 6])
def test_no_points_is_an_empty_cloud(point_format, packed):
    assert read(written(survey(point_format, 0), packed), "las").shape == (0, 4)


@pytest.mark.parametrize("point_format", [0, 6])
def test_clouds_of_several_chunks_are_read(point_format):
    las = survey(point_format, 120_000)
    assert np.array_equal(read(written(las, packed=True), "laz", limit_points=120_000), expected(las))


def test_chunks_of_varying_length_are_read():
    las = survey(6, 100)
    rows = np.frombuffer(las.points.array, np.uint8).reshape(100, 30)
    settings = lazrs.LazVlr.new_for_compression(6, 0, True)
    packed = io.BytesIO()
    compressor = lazrs.LasZipCompressor(packed, settings)
    compressor.compress_chunks([rows[:30].tobytes(), rows[30:31].tobytes(), rows[31:].tobytes()])
    compressor.done()
    body = with_points(written(las, packed=True), settings.record_data(), packed.getvalue())
    assert np.array_equal(read(body, "laz"), expected(las))


def with_points(body, record, packed):
    """The file with other compressed points, and the LASzip record that describes them."""
    at = body.index(b"laszip encoded") - 2 + 54
    start = struct.unpack_from("<I", body, 96)[0]
    return body[:at] + record + body[at + len(record) : start] + packed


LAS, LAZ6, LAZ0 = written(survey(3)), written(survey(6), packed=True), written(survey(0), packed=True)
RECORD6, RECORD0 = (body.index(b"laszip encoded") - 2 + 54 for body in (LAZ6, LAZ0))
POINTS6, POINTS0 = (struct.unpack_from("<I", body, 96)[0] for body in (LAZ6, LAZ0))
SIZES6 = POINTS6 + 8 + 30


def changed(body, layout, at, *values):
    return body[:at] + struct.pack(layout, *values) + body[at + struct.calcsize(layout) :]


MISTAKES = [
    (b"", "LAS: the file must begin with b'LASF' and a header of 227 bytes; it has 0 bytes and begins with b''"),
    (LAS[:226], "LAS: the file must begin with b'LASF' and a header of 227 bytes; it has 226 bytes"),
    (changed(LAS, "<BB", 24, 2, 0), "LAS: version 2.0, known are 1.0 to 1.4"),
    (changed(LAS, "<H", 94, 100), "LAS: header of 100 bytes (at least 227) and points from byte "),
    (
        changed(LAS, "<I", 96, 2**32 - 1),
        "LAS: header of 227 bytes (at least 227) and points from byte 4294967295 on do not",
    ),
    (changed(LAS, "<B", 104, 11), "LAS: point format 11 with records of 34 bytes; known are formats 0 to 10"),
    (
        changed(LAS, "<H", 105, 33),
        "LAS: point format 3 with records of 33 bytes; known are formats 0 to 10 with at least 20",
    ),
    (changed(LAS, "<I", 107, 201), "LAS: 201 points of 34 bytes take 6834 bytes, but 6800 follow the header"),
    (changed(LAS, "<I", 107, 2**32 - 1), "LAS: 4294967295 points of 34 bytes take 146028888030 bytes, but 6800 follow"),
    (changed(LAS, "<d", 155, 500_000.0), "x reaches 500"),
    (
        LAZ6.replace(b"laszip encoded", b"laszip encoder"),
        "LAZ: the points are compressed, but no LASzip record says how",
    ),
    (changed(LAZ6, "<I", 100, 0), "LAZ: the points are compressed, but no LASzip record says how"),
    (changed(LAZ6, "<H", RECORD6 + 32, 0), "LAZ: a LASzip record of 40 bytes cannot hold its 0 items of 6 bytes"),
    (
        changed(LAZ6, "<H", RECORD6 + 32, 65535),
        "LAZ: a LASzip record of 40 bytes cannot hold its 65535 items of 6 bytes",
    ),
    (changed(LAZ6, "<H", RECORD6 + 34, 11), "LAZ: compressor 3 has no item of type 11 and 30 bytes"),
    (
        changed(LAZ6, "<HH", RECORD6 + 34, 14, 30),
        "LAZ: items [(14, 30)] of (type, bytes) do not make a point of 30 bytes",
    ),
    (changed(LAZ6, "<I", RECORD6 + 12, 0), "LAZ: chunks of 0 points"),
    (changed(LAZ6, "<I", SIZES6 + 4, 2**32 - 1), "LAZ: a chunk of 200 points and 42949"),
    (changed(LAZ6, "<Q", 247, 50_001), "LAZ: the file ends 1 points before the 50001 that are declared"),
    (LAZ6[: POINTS6 + 60], "LAZ: the file ends 200 points before the 200 that are declared"),
    (LAZ6[: POINTS6 + 100], "LAZ: a chunk of 200 points and "),
    (changed(LAZ0, "<I", 107, 60_000), "LAZ: the compressed points cannot be unpacked: "),
    (LAZ0[: POINTS0 + 40], "LAZ: the compressed points cannot be unpacked: "),
    (LAZ0[: POINTS0 + 3], "LAZ: the compressed points cannot be unpacked: "),
]


@pytest.mark.parametrize(("body", "expected"), MISTAKES, ids=[str(at) for at in range(len(MISTAKES))])
def test_mistakes_are_told_with_their_numbers(body, expected):
    assert refusal(BadRequest, body, "laz").startswith(expected)


def test_counts_above_the_limit_are_refused():
    assert refusal(TooLarge, LAS, "las", limit_points=199) == "the cloud has 200 points, the limit is 199"
    body = changed(LAZ6, "<Q", 247, 2**64 - 1)
    assert refusal(TooLarge, body, "laz") == "the cloud has 18446744073709551615 points, the limit is 100000"


def test_points_of_many_extra_bytes_are_refused_before_they_are_unpacked():
    las = survey(0)
    las.add_extra_dims([laspy.ExtraBytesParams(f"extra{at}", "3f8") for at in range(10)])
    assert refusal(TooLarge, written(las, packed=True), "laz", limit_points=200) == (
        "the compressed points unpack to 52000 bytes, the limit is 25600 (128 for each of 200 points); "
        "leave unused fields out"
    )


def test_compressors_that_are_not_read_are_named():
    for compressor, chunk in ((1, 50_000), (2, 2**32 - 1)):
        body = changed(changed(LAZ0, "<H", RECORD0, compressor), "<I", RECORD0 + 12, chunk)
        assert refusal(UnsupportedMedia, body, "laz") == (
            f"LAZ: compressor {compressor} with chunks of {chunk} points; write LAS instead"
        )


def test_sizes_of_gigabytes_in_a_small_file_cost_no_memory():
    """Passed on unchecked, each of these layers and tables is allocated at its declared size."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for layer in range(9):
        refusal(BadRequest, changed(LAZ6, "<I", SIZES6 + 4 + 4 * layer, 2**31), "laz")
    for body, start in ((LAZ6, POINTS6), (LAZ0, POINTS0)):
        table = struct.unpack_from("<q", body, start)[0]
        assert read(changed(body, "<I", table + 4, 2**32 - 1), "laz").shape == (200, 4)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_without_lazrs_laz_names_what_to_install_and_las_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "lazrs", None)
    told = "LAZ is read by an optional package: pip install '.[formats]' in a checkout of Lacuna"
    assert refusal(UnsupportedMedia, LAZ6, "laz") == told
    assert read(LAS, "las", XYZI).shape == (200, 4)
