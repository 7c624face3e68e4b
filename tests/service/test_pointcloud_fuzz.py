"""Any bytes at all: every reader answers with a cloud or a ServiceError, in bounded time and memory."""

import importlib.util
import struct
import time
import tracemalloc

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings

from lacuna_service.codecs.labelled import encode_npy, encode_ply
from lacuna_service.codecs.pointcloud import FORMATS, decode
from lacuna_service.errors import ServiceError
from tests.service.pointcloud_cases import XYZI, scan
from tests.service.test_pointcloud_npy import saved
from tests.service.test_pointcloud_pcd import STORAGES, lzf_of, pcd, written
from tests.service.test_pointcloud_ply import BINARY, FACES, faces, header, vertices

LIMIT_POINTS = 1000
PEAK_BYTES = 2_000_000
CPU_SECONDS = 1.0

CLOUD = scan(20)
SEEDS = {
    "bin": [CLOUD.tobytes()],
    "pcd": [
        *(written(CLOUD, storage=storage) for storage in STORAGES),
        pcd(lzf_of(CLOUD.T.tobytes()), "binary_compressed", "20"),
        pcd(b"1 2 3 4\n", "ascii", SIZE="8 4 8 1", TYPE="F F F U"),
    ],
    "ply": [
        encode_ply(CLOUD, np.zeros(20, int), np.zeros((1, 3), np.uint8)),
        header(FACES + vertices(20), BINARY) + faces("<") + CLOUD.tobytes(),
        header(vertices(2, "float float float uchar")) + b"1 2 3 4\n5 6 7 8\n",
    ],
    "npy": [saved(CLOUD), saved(np.zeros(5, "f4, f8, u1")), saved(CLOUD, (2, 0)), encode_npy(np.arange(3))],
}
WORDS = [b"-1", b"0", b"1e9", b"999999999999999", b"4294967296", b"nan", b"inf", b"\xff\xfe", b"list", b"x", b"8", b""]
NUMBERS = [0, 1, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1]


def surveys():
    from tests.service.test_pointcloud_las import survey, written

    return [written(survey(form, 20), packed) for form in (0, 3, 7, 10) for packed in (False, True)]


if importlib.util.find_spec("laspy") and importlib.util.find_spec("lazrs"):
    SEEDS |= dict.fromkeys(("las", "laz"), surveys())


@st.composite
def damaged(draw, name):
    """A file that was valid, after one to four of: another word, number or byte; a cut; an insertion."""
    body = draw(st.sampled_from(SEEDS[name]))
    for _ in range(draw(st.integers(1, 4))):
        reach = min(len(body), draw(st.sampled_from([60, 400, len(body)])))
        at = draw(st.integers(0, max(0, reach - 1)))
        match draw(st.sampled_from(["word", "number", "byte", "cut", "insert"])):
            case "word":
                words = body[at:].split(b" ", 2)
                words[1:2] = [draw(st.sampled_from(WORDS))]
                body = body[:at] + b" ".join(words)
            case "number":
                body = body[:at] + struct.pack("<I", draw(st.sampled_from(NUMBERS))) + body[at + 4 :]
            case "byte":
                body = body[:at] + draw(st.binary(min_size=1, max_size=1)) + body[at + 1 :]
            case "cut":
                body = body[:at]
            case "insert":
                body = body[:at] + draw(st.binary(max_size=8)) + body[at:]
    return body


def survives(body, name, columns_in_bin=None):
    tracemalloc.start()
    started = time.process_time()
    try:
        cloud = decode(body, name, XYZI, columns_in_bin=columns_in_bin, limit_points=LIMIT_POINTS)
    except ServiceError as error:
        assert 400 <= error.status < 500
        assert str(error).isprintable()
        assert len(str(error)) < 600
    else:
        assert cloud.points.shape[1] == 4
        assert len(cloud.points) <= LIMIT_POINTS
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < PEAK_BYTES
    assert time.process_time() - started < CPU_SECONDS


LOOSE = settings(deadline=None, max_examples=250, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", SEEDS)
@settings(LOOSE)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(name, data):
    survives(data.draw(damaged(name)), name)


@pytest.mark.parametrize("name", SEEDS)
@settings(LOOSE, max_examples=60)
@given(body=st.binary(max_size=400), columns=st.none() | st.integers(-3, 2000))
@example(body=b"", columns=None)
def test_random_bytes_behind_a_right_beginning_are_read_or_refused(name, body, columns):
    for start in (b"", *FORMATS[name].begins):
        survives(start + body, name, columns)


@pytest.mark.parametrize("name", SEEDS)
def test_every_truncation_of_a_valid_file_is_read_or_refused(name):
    for body in SEEDS[name]:
        for end in {*range(min(len(body), 400)), *range(0, len(body), 37)}:
            survives(body[:end], name)


@settings(LOOSE)
@given(
    points=st.lists(st.tuples(*[st.floats(width=32)] * 4), max_size=30),
    storage=st.sampled_from(["bin", "npy", "pcd", "compressed", "ply"]),
)
def test_any_float32_survives_the_way_there_and_back(points, storage):
    cloud = np.array(points, np.float32).reshape(-1, 4)
    count = str(len(cloud))
    body = {
        "bin": cloud.tobytes(),
        "npy": saved(cloud),
        "pcd": pcd(cloud.tobytes(), points=count),
        "compressed": pcd(lzf_of(cloud.T.tobytes()), "binary_compressed", count),
        "ply": header(vertices(count), BINARY) + cloud.tobytes(),
    }[storage]
    name = "pcd" if storage == "compressed" else storage
    read_back = decode(body, name, XYZI, columns_in_bin=None, limit_points=LIMIT_POINTS).points
    assert np.array_equal(read_back, cloud, equal_nan=True)
