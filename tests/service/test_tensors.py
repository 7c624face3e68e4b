"""Tensors and inference messages on the wire, without a server."""

import json
import tracemalloc

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lacuna_service.codecs.inference import JSON_LIMIT_BYTES, decode_request, encode_answer
from lacuna_service.codecs.tensors import BINARY_ONLY, CHUNK, DATATYPES, from_bytes, from_json, to_bytes, to_json
from lacuna_service.errors import BadRequest, ServiceError, TooLarge

JSON_TYPES = sorted(set(DATATYPES) - set(BINARY_ONLY))


def some(datatype: str) -> torch.Tensor:
    return (torch.arange(24) % 2 if datatype == "BOOL" else torch.arange(24)).to(DATATYPES[datatype]).reshape(2, 3, 4)


def message(header: object, binary: bytes = b"") -> tuple[bytearray, str | None]:
    text = json.dumps(header).encode()
    return bytearray(text + binary), str(len(text)) if binary else None


def tensor_record(**changes: object) -> dict[str, object]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **changes}


def binary_record(size: object) -> dict[str, object]:
    return {"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": size}}


@pytest.mark.parametrize("datatype", DATATYPES)
def test_binary_form_and_back_is_the_same_tensor(datatype: str) -> None:
    tensor = some(datatype)
    assert torch.equal(from_bytes("x", datatype, (2, 3, 4), to_bytes(tensor)), tensor)


@pytest.mark.parametrize("datatype", JSON_TYPES)
def test_json_form_and_back_is_the_same_tensor(datatype: str) -> None:
    tensor = some(datatype)
    text = orjson.dumps(to_json(tensor))
    assert torch.equal(from_json("x", datatype, (2, 3, 4), orjson.loads(text)), tensor)


@pytest.mark.parametrize("datatype", ["UINT64", "INT64", "FP64", "FP32"])
def test_json_keeps_the_extreme_numbers_of_a_datatype(datatype: str) -> None:
    info = torch.finfo if DATATYPES[datatype].is_floating_point else torch.iinfo
    tensor = torch.from_numpy(np.array([info(DATATYPES[datatype]).min, info(DATATYPES[datatype]).max])).to(
        DATATYPES[datatype]
    )
    text = orjson.dumps(to_json(tensor))
    assert torch.equal(from_json("x", datatype, (2,), orjson.loads(text)), tensor)


def test_binary_data_is_little_endian_and_row_major() -> None:
    assert from_bytes("x", "INT16", (2, 2), memoryview(b"\1\0\2\0\3\0\4\1")).tolist() == [[1, 2], [3, 260]]
    assert bytes(to_bytes(torch.tensor([[1, 2], [3, 260]], dtype=torch.int16).T)) == b"\1\0\3\0\2\0\4\1"


@pytest.mark.parametrize("start", range(8))
def test_binary_data_may_start_anywhere(start: int) -> None:
    tensor = torch.tensor([1.5, -2.5], dtype=torch.float64)
    body = bytearray(start) + to_bytes(tensor)
    assert torch.equal(from_bytes("x", "FP64", (2,), memoryview(body)[start:]), tensor)


def test_any_byte_but_zero_is_true() -> None:
    assert from_bytes("x", "BOOL", (3,), memoryview(b"\0\1\xff")).tolist() == [False, True, True]


def test_a_tensor_may_have_no_elements() -> None:
    assert from_bytes("x", "FP32", (0, 4), memoryview(b"")).shape == (0, 4)
    assert from_json("x", "INT32", (0, 4), []).shape == (0, 4)
    assert bytes(to_bytes(torch.zeros(0, 4))) == b""


def test_json_data_may_be_flat_or_nested() -> None:
    assert torch.equal(
        from_json("x", "FP32", (2, 2), [[1, 2], [3, 4.5]]), from_json("x", "FP32", (2, 2), [1, 2, 3, 4.5])
    )


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT32", [1.5]),
        ("INT32", [2**31]),
        ("INT32", [True]),
        ("UINT8", [-1]),
        ("UINT64", [2**64]),
        ("BOOL", [1]),
        ("FP32", ["1"]),
        ("FP32", [None]),
        ("FP32", [1e39]),
        ("FP32", [True]),
        ("FP32", [1.5, True]),
        ("BOOL", [True, 1]),
        ("FP32", [[1], 2]),
        ("FP32", [1, [2]]),
        ("FP32", [[1], [2, 3]]),
        ("FP32", [{}]),
        ("FP32", [1, 2]),
        ("FP16", [1]),
        ("BF16", [1]),
        ("BYTES", ["a"]),
        ("FP8", [1]),
    ],
)
def test_json_data_of_another_kind_count_or_range_is_refused(datatype: str, data: object) -> None:
    with pytest.raises(BadRequest, match=r"x|datatype"):
        from_json("x", datatype, (1,), data)


def test_a_long_text_among_numbers_is_refused_before_anything_is_made_of_it() -> None:
    data: list[object] = ["x" * 10_000, *[""] * 9_999]
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match="must hold numbers"):
            from_json("x", "FP32", (10_000,), data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_json_of_many_numbers_is_the_same_tensor() -> None:
    tensor = torch.arange(2 * CHUNK + 5)
    text = orjson.dumps(to_json(tensor))
    assert orjson.loads(text) == tensor.tolist()
    assert torch.equal(from_json("x", "INT64", (2 * CHUNK + 5,), orjson.loads(text)), tensor)
    with pytest.raises(BadRequest, match="must lie in"):
        from_json("x", "INT32", (2 * CHUNK + 5,), [*tensor.tolist()[:-1], 2**31])


@pytest.mark.parametrize("shape", [(2**31, 1024), (2**40,) * 8, (3,), (0,)])
def test_a_shape_that_the_bytes_do_not_fill_is_refused_before_anything_is_made(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadRequest, match="takes"):
        from_bytes("x", "FP32", shape, memoryview(bytes(8)))


def test_not_a_number_is_null_in_json() -> None:
    answer = encode_answer("m", "1", None, {"y": (torch.tensor([1.0, float("nan"), float("inf")]), False)})
    assert json.loads(answer.body)["outputs"][0]["data"] == [1.0, None, None]


def test_request_says_what_it_says() -> None:
    header = {
        "id": "42",
        "parameters": {"priority": 3, "timeout": 1500, "mine": "ignored", "binary_data_output": True},
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}},
            tensor_record(),
            {"name": "b", "datatype": "INT8", "shape": [2], "parameters": {"binary_data_size": 2}},
        ],
        "outputs": [{"name": "y"}, {"name": "z", "parameters": {"binary_data": False}}],
    }
    request = decode_request(*message(header, b"\0\0\x80\x3f\7\xff"))
    assert (request.id, request.priority, request.timeout_s) == ("42", 3, 0.0015)
    assert request.outputs == (("y", True), ("z", False))
    assert {tensor.name: tensor.tensor().tolist() for tensor in request.inputs} == {
        "a": [[1.0]],
        "x": [[1.0, 2.0]],
        "b": [7, -1],
    }


def test_header_length_zero_means_that_the_body_is_the_input() -> None:
    request = decode_request(bytearray(b"1234"), "0")
    assert request.raw is not None and bytes(request.raw) == b"1234" and request.binary_default


@pytest.mark.parametrize("given", ["-1", "1.5", "x", "", "9999999999999999999999", "1e3", "0x10", "\u0663", "1000"])
def test_header_length_that_is_no_length_within_the_body_is_refused(given: str) -> None:
    with pytest.raises(BadRequest, match="Inference-Header-Content-Length"):
        decode_request(bytearray(b'{"inputs": []}'), given)


BROKEN = {
    "no object": [],
    "no inputs": {},
    "inputs no list": {"inputs": {}},
    "inputs empty": {"inputs": []},
    "too many inputs": {"inputs": [tensor_record(name=str(i)) for i in range(300)]},
    "input no object": {"inputs": [1]},
    "no name": {"inputs": [tensor_record(name=None)]},
    "no shape": {"inputs": [tensor_record(shape=None)]},
    "shape of text": {"inputs": [tensor_record(shape=["1"])]},
    "shape of truth": {"inputs": [tensor_record(shape=[True])]},
    "shape of fractions": {"inputs": [tensor_record(shape=[1.0, 2])]},
    "shape below zero": {"inputs": [tensor_record(shape=[-1, 2])]},
    "shape too large": {"inputs": [tensor_record(shape=[2**63])]},
    "shape too long": {"inputs": [tensor_record(shape=[1] * 9)]},
    "no datatype": {"inputs": [tensor_record(datatype=None)]},
    "no data": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]},
    "data no list": {"inputs": [tensor_record(data=5)]},
    "data twice": {"inputs": [tensor_record(parameters={"binary_data_size": 0})]},
    "same input twice": {"inputs": [tensor_record(), tensor_record()]},
    "size too large": {"inputs": [{**tensor_record(parameters={"binary_data_size": 8}), "data": None}]},
    "size below zero": {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [0], "parameters": {"binary_data_size": -1}}]
    },
    "size of text": {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [0], "parameters": {"binary_data_size": "8"}}]
    },
    "shared memory": {"inputs": [tensor_record(parameters={"shared_memory_region": "r"})]},
    "classification": {"inputs": [tensor_record()], "outputs": [{"name": "y", "parameters": {"classification": 3}}]},
    "same output twice": {"inputs": [tensor_record()], "outputs": [{"name": "y"}, {"name": "y"}]},
    "output no object": {"inputs": [tensor_record()], "outputs": ["y"]},
    "parameters no object": {"inputs": [tensor_record()], "parameters": []},
    "reserved parameter": {"inputs": [tensor_record()], "parameters": {"triton_x": 1}},
    "priority of text": {"inputs": [tensor_record()], "parameters": {"priority": "high"}},
    "timeout below zero": {"inputs": [tensor_record()], "parameters": {"timeout": -1}},
    "binary_data_output of a number": {"inputs": [tensor_record()], "parameters": {"binary_data_output": 1}},
    "id of a number": {"inputs": [tensor_record()], "id": 5},
    "id too long": {"inputs": [tensor_record()], "id": "x" * 1000},
}


@pytest.mark.parametrize("header", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_request_is_refused(header: object) -> None:
    with pytest.raises(BadRequest):
        decode_request(*message(header))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"inputs": NaN}', b'{"inputs":[1e999]}', b"null"]
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_request(bytearray(body), None)


def test_bytes_after_the_last_input_are_refused() -> None:
    header = {"inputs": [binary_record(4)]}
    with pytest.raises(BadRequest, match="3 bytes follow"):
        decode_request(*message(header, bytes(7)))
    with pytest.raises(BadRequest, match="only 3 bytes"):
        decode_request(*message(header, bytes(3)))


def test_json_of_countless_lists_is_refused_unparsed() -> None:
    for piece in (b"[],", b"{},"):
        with pytest.raises(TooLarge, match="lists and objects"):
            decode_request(bytearray(b'{"inputs": [' + piece * (2**18 + 1) + b"0]}"), None)


def test_json_above_its_limit_is_refused_unread() -> None:
    with pytest.raises(TooLarge, match="binary"):
        decode_request(bytearray(JSON_LIMIT_BYTES + 1), None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
records = st.fixed_dictionaries(
    {},
    optional={
        "name": json_values | st.just("x"),
        "datatype": json_values | st.sampled_from(sorted(DATATYPES)),
        "shape": json_values | st.lists(st.integers(0, 5), max_size=3),
        "data": json_values,
        "parameters": json_values | st.fixed_dictionaries({"binary_data_size": json_values | st.integers(0, 9)}),
    },
)
headers = st.fixed_dictionaries(
    {"inputs": st.lists(records, max_size=3) | json_values},
    optional={"outputs": st.lists(records, max_size=2), "parameters": json_values, "id": json_values},
)


@given(header=headers, binary=st.binary(max_size=12), length=st.none() | st.integers(-5, 500))
def test_whatever_is_sent_is_read_or_refused(header: object, binary: bytes, length: int | None) -> None:
    body = bytearray(json.dumps(header).encode() + binary)
    try:
        for tensor in decode_request(body, None if length is None else str(length)).inputs:
            tensor.tensor()
    except ServiceError as error:
        assert 400 <= error.status < 500


def test_answer_has_a_header_length_only_if_an_output_is_binary() -> None:
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([3], dtype=torch.int32)
    plain = encode_answer("m", "2", "7", {"x": (x, False), "y": (y, False)})
    mixed = encode_answer("m", "2", None, {"x": (x, False), "y": (y, True)}, {"energy_joules": 0.5})
    assert plain.header_length is None
    assert json.loads(plain.body) == {
        "model_name": "m",
        "model_version": "2",
        "id": "7",
        "outputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]},
            {"name": "y", "datatype": "INT32", "shape": [1], "data": [3]},
        ],
    }
    header = json.loads(mixed.body[: mixed.header_length])
    assert header["outputs"][1]["parameters"] == {"binary_data_size": 4}
    assert header["parameters"] == {"energy_joules": 0.5} and "id" not in header
    assert mixed.body[mixed.header_length :] == b"\3\0\0\0"
