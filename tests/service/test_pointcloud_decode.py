"""What holds for every format: choosing one, names and units of columns, raw rows, limits."""

import io

import numpy as np
import pytest

from lacuna_service.codecs.pointcloud import FORMATS, format_of
from lacuna_service.errors import BadRequest, TooLarge, UnsupportedMedia
from tests.service.pointcloud_cases import XYZI, read, refusal, scan


def structured(**columns):
    rows = np.rec.fromarrays(list(columns.values()), names=list(columns))
    out = io.BytesIO()
    np.save(out, np.asarray(rows))
    return out.getvalue()


@pytest.mark.parametrize(
    ("content_type", "query", "expected"),
    [
        ("application/octet-stream", None, "bin"),
        ("application/x-www-form-urlencoded", None, "bin"),
        (None, None, "bin"),
        ("", None, "bin"),
        ("MODEL/X-PCD; charset=binary", None, "pcd"),
        ("model/ply", None, "ply"),
        ("application/vnd.las", None, "las"),
        ("application/vnd.laszip", None, "laz"),
        ("application/x-npy", None, "npy"),
        ("application/vnd.las", "PLY", "ply"),
        ("image/png", "bin", "bin"),
    ],
)
def test_query_wins_over_content_type(content_type, query, expected):
    assert format_of(content_type, query) == expected


def test_each_content_type_names_one_format():
    listed = [kind for form in FORMATS.values() for kind in form.content_types]
    assert len(set(listed)) == len(listed)


def test_unknown_formats_list_the_known_ones():
    with pytest.raises(UnsupportedMedia) as caught:
        format_of(None, "xyz\n")
    assert str(caught.value) == r"?format='xyz\n' is not known; known are bin, pcd, ply, npy, las, laz"
    with pytest.raises(UnsupportedMedia) as caught:
        format_of("image/png", None)
    assert str(caught.value) == (
        "Content-Type 'image/png' is no point cloud; known are application/octet-stream, model/x-pcd, model/x-ply, "
        "application/x-npy, application/vnd.las, application/vnd.laszip; or say ?format="
    )


def test_bin_of_the_models_columns_is_the_tensor_without_a_copy():
    points = scan()
    body = bytearray(points.tobytes())
    read_points = read(memoryview(body), "bin")
    assert np.array_equal(read_points, points)
    body[0:4] = np.float32(7).tobytes()
    assert read_points[0, 0] == 7


@pytest.mark.parametrize("columns", [3, 4, 5, 7])
def test_bin_of_more_columns_gives_the_ones_it_is_known_to_have(columns):
    points = scan(columns=columns)
    assert np.array_equal(read(points.tobytes(), "bin", ("x", "y", "z"), columns), points[:, :3])


def test_nuscenes_intensity_is_brought_to_one():
    points = scan(columns=5)
    points[:, 3] = np.arange(len(points)) % 256
    expected = points[:, :4] / np.array([1, 1, 1, 255], np.float32)
    assert np.array_equal(read(points.tobytes(), "bin", XYZI, 5), expected)


def test_as_many_columns_as_the_models_are_the_models_as_they_are():
    points = scan(columns=5) * 100
    assert np.array_equal(read(points.tobytes(), "bin", (*XYZI, "ring"), 5), points)
    assert np.array_equal(read(points.tobytes(), "bin", (*XYZI, "time")), points)


def test_bin_that_does_not_divide_says_what_would():
    assert refusal(BadRequest, bytes(20 * 3), "bin") == (
        "a .bin of 60 bytes is not a whole number of points: 4 float32 columns take 16 bytes a point and "
        "12 bytes are left over; it would be with 3 or 5 columns (?columns=)"
    )


@pytest.mark.parametrize("columns", [-1, 0, 2, 1025, 10**12])
def test_bin_of_impossible_columns_is_refused(columns):
    expected = f"a .bin has 3 to 1024 columns a point (x y z ...), not {columns}"
    assert refusal(BadRequest, bytes(16), "bin", columns_in_bin=columns) == expected


def test_bin_without_a_column_names_what_it_has():
    assert refusal(BadRequest, bytes(24), "bin", columns_in_bin=3) == (
        "no column 'intensity': the model wants x, y, z, intensity; the file has x, y, z"
    )
    assert refusal(BadRequest, bytes(28), "bin", columns_in_bin=7).endswith(
        "the file has x, y, z, unnamed column 3, unnamed column 4, unnamed column 5, unnamed column 6"
    )


def test_empty_bin_is_an_empty_cloud():
    assert read(b"", "bin").shape == (0, 4)


def test_limit_of_points_is_the_last_that_passes():
    assert len(read(bytes(16 * 10), "bin", limit_points=10)) == 10
    assert refusal(TooLarge, bytes(16 * 11), "bin", limit_points=10) == "the cloud has 11 points, the limit is 10"


@pytest.mark.parametrize(
    ("start", "alike"), [(b"# .PCD v0.7", "pcd"), (b"ply\nform", "ply"), (b"\x93NUMPY", "npy"), (b"LASF", "las")]
)
def test_file_of_another_format_is_not_read_as_raw_rows(start, alike):
    body = start.ljust(32, b"\0")
    assert refusal(BadRequest, body, "bin") == (
        f"the body is to be read as bin, but begins like {alike}: say ?format={alike}"
    )


@pytest.mark.parametrize(
    "name", ["intensity", "I", "Reflectivity", "scalar_intensity", "Scalar_Reflectance", "remission"]
)
def test_names_of_intensity_are_understood(name):
    x, brightness = np.ones(3, "f4"), np.array([0, 0.5, 3], "f4")
    cloud = read(structured(**{name: brightness}, X=x, Y=x, Z=x), "npy")
    assert np.array_equal(cloud[:, 3], brightness)


def test_exact_name_wins_over_an_alias():
    x = np.ones(2, "f4")
    cloud = read(structured(reflectivity=x * 2, intensity=x * 3, x=x, y=x, z=x), "npy")
    assert np.array_equal(cloud[:, 3], x * 3)


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i1", "i2", "i4"])
def test_whole_intensities_are_scaled_by_their_type_and_other_columns_are_not(kind):
    most = np.iinfo(kind).max
    level = np.array([0, most // 2, most], kind)
    x = np.zeros(3, "f4")
    cloud = read(structured(x=x, y=x, z=x, i=level, ring=level), "npy", ("x", "y", "z", "intensity", "ring"))
    assert np.array_equal(cloud[:, 3], (level / most).astype("f4"))
    assert np.array_equal(cloud[:, 4], level.astype("f4"))


def test_float_intensities_above_one_are_taken_as_they_are():
    x = np.array([200, 70000], "f8")
    assert np.array_equal(read(structured(x=x, y=x, z=x, intensity=x), "npy")[:, 3], x)


def test_coordinates_that_float32_would_coarsen_are_refused():
    x = np.array([0, 4512345.25])
    assert refusal(BadRequest, structured(x=x * 0, y=x, z=x, i=x), "npy") == (
        "y reaches 4512345.25 m, where float32 keeps steps of 0.5 m: "
        "subtract an origin first, so that coordinates stay below 131072 m"
    )
    assert read(structured(x=x / 100, y=x / 100, z=x / 100, i=x), "npy")[1, 0] == np.float32(45123.4525)


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_values_that_are_not_finite_pass_through(kind):
    x = np.array([np.nan, np.inf, -np.inf, 1], kind)
    assert np.array_equal(read(structured(x=x, y=x, z=x, i=x), "npy"), np.stack([x] * 4, 1), equal_nan=True)
