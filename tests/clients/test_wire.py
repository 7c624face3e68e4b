"""The wire format: what is encoded comes back, byte for byte, and damage is noticed."""

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lacuna_client.errors import LacunaError, ProtocolError
from lacuna_client.wire import DTYPES, Tensor, decode_response, encode_request, from_bytes, round_to_bf16

shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def answer_of(body, headers):
    """The answer of a server that gives back its inputs: the same entries under another key."""
    end = int(headers.get("Inference-Header-Content-Length", len(body)))
    header = json.loads(body[:end])
    text = json.dumps({"model_name": "echo", "outputs": header["inputs"]}).encode()
    return decode_response(text + body[end:], str(len(text)) if len(body) > end or end < len(body) else None)


@pytest.mark.parametrize("datatype", DTYPES)
@given(data=st.data())
def test_tensors_survive_the_binary_form(datatype, data):
    array = data.draw(hnp.arrays(DTYPES[datatype], shapes))
    back = answer_of(*encode_request({"a": array}, None))["a"]
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("datatype", sorted(set(DTYPES) - {"FP16"}))
@given(data=st.data())
def test_tensors_survive_the_json_form(datatype, data):
    array = data.draw(hnp.arrays(DTYPES[datatype], shapes))
    array = np.nan_to_num(array) if array.dtype.kind == "f" else array
    back = answer_of(*encode_request({"a": array}, None, binary=False))["a"]
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(items=st.lists(st.binary(max_size=20), max_size=6))
def test_strings_keep_every_byte(items):
    array = np.empty(len(items), object)
    array[:] = items
    assert answer_of(*encode_request({"a": array}, None))["a"].tolist() == items


@given(array=hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=8)))
def test_bf16_is_the_nearest_and_comes_back_exactly(array):
    back = answer_of(*encode_request({"a": Tensor("BF16", array)}, None))["a"]
    assert back.dtype == np.float32 and back.shape == array.shape
    assert (np.isnan(back) == np.isnan(array)).all()
    upper = array.view(np.uint32) & np.uint32(0xFFFF0000)
    low, high = upper.view(np.float32), (upper + np.uint32(0x10000)).view(np.float32)
    finite = np.isfinite(array) & np.isfinite(low) & np.isfinite(high)
    low, high, exact, got = (value[finite].astype(np.float64) for value in (low, high, array, back))
    assert (np.abs(got - exact) == np.minimum(np.abs(low - exact), np.abs(high - exact))).all()
    assert (round_to_bf16(back) == round_to_bf16(array)).all()


def test_bf16_ties_go_to_even():
    bits = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0xFF800000], np.uint32)
    assert round_to_bf16(bits.view(np.float32)).tolist() == [0x3F80, 0x3F82, 0x7F80, 0xFF80]


def test_request_has_the_documented_bytes():
    body, headers = encode_request({"x": np.array([[1.0, -2.0]], np.float32)}, ["y"], request_id="7")
    end = int(headers["Inference-Header-Content-Length"])
    assert json.loads(body[:end]) == {
        "id": "7",
        "parameters": {"binary_data_output": True},
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    assert body[end:] == struct.pack("<2f", 1.0, -2.0)


def test_big_endian_and_strided_arrays_are_sent_little_endian_and_row_major():
    array = np.arange(12, dtype=">i4").reshape(3, 4)[::-1, ::2]
    back = answer_of(*encode_request({"a": array}, None))["a"]
    assert back.tolist() == array.tolist()


@pytest.mark.parametrize("array", [np.array([1j]), np.array(["2020-01-01"], "M8[D]")], ids=["complex", "date"])
def test_types_outside_the_protocol_are_refused(array):
    with pytest.raises(TypeError, match="cannot be sent"):
        encode_request({"a": array}, None)


def test_half_precision_has_no_json_form():
    with pytest.raises(TypeError, match="no JSON form"):
        encode_request({"a": np.zeros(1, np.float16)}, None, binary=False)


def test_decoded_arrays_are_writable_and_own_their_memory():
    back = from_bytes("INT32", [2], memoryview(struct.pack("<2i", 1, 2)))
    back[0] = 5
    assert back.tolist() == [5, 2]


OUTPUT = {"name": "a", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}


@pytest.mark.parametrize(
    ("change", "tail"),
    [
        ({"parameters": {"binary_data_size": 12}}, bytes(8)),
        ({"parameters": {"binary_data_size": -8}}, bytes(8)),
        ({"parameters": {"binary_data_size": "8"}}, bytes(8)),
        ({"shape": [3]}, bytes(8)),
        ({"shape": [-1, -1]}, bytes(8)),
        ({"shape": [2**62, 2**62]}, bytes(8)),
        ({"datatype": "FP12"}, bytes(8)),
        ({"datatype": "BYTES"}, b"\xff\xff\xff\xff1234"),
        ({"datatype": "BYTES", "shape": [3]}, bytes(8)),
        ({}, bytes(9)),
        ({}, bytes(7)),
    ],
)
def test_answers_that_do_not_fit_are_protocol_errors(change, tail):
    text = json.dumps({"model_name": "m", "outputs": [{**OUTPUT, **change}]}).encode()
    with pytest.raises(ProtocolError):
        decode_response(text + tail, str(len(text)))


@given(body=st.binary(max_size=60), length=st.none() | st.text(max_size=4) | st.integers(-5, 99).map(str))
def test_any_bytes_give_an_answer_or_a_lacuna_error(body, length):
    with contextlib.suppress(LacunaError):
        decode_response(body, length)
