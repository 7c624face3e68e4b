"""Bodies: limits, compression, clients that go away."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacuna_service.body import Disconnected, choose_encoding, compress, decompress, read_body
from lacuna_service.errors import BadRequest, ServiceError, TooLarge, UnsupportedMedia

LIMIT = 1000


def receive(parts: Iterable[bytes], whole: bool = True) -> Any:
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b""} if whole else {"type": "http.disconnect"})
    remaining = iter(messages)

    async def next_message() -> dict[str, Any]:
        return next(remaining)

    return next_message


def read(*parts: bytes, whole: bool = True, **headers: str) -> bytes:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return bytes(asyncio.run(read_body(receive(parts, whole), named, LIMIT)))


@pytest.mark.parametrize("announced", ["6", "0", "3", "1000", "0" * 30 + "6"])
def test_body_is_what_was_sent_whatever_was_announced(announced: str) -> None:
    assert read(b"abc", b"", b"def", content_length=announced) == b"abcdef"
    assert read(b"abc", b"", b"def") == b"abcdef"


def test_body_above_the_limit_is_refused_by_its_length_or_on_the_way() -> None:
    with pytest.raises(TooLarge, match="1001 bytes"):
        read(content_length="1001")
    with pytest.raises(TooLarge):
        read(*[bytes(100)] * 11)
    assert len(read(*[bytes(100)] * 10)) == LIMIT


def test_a_body_that_was_only_announced_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Disconnected):
            asyncio.run(read_body(receive([b"abc"], whole=False), {"content-length": str(2**28)}, 2**28))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_client_that_goes_away_is_noticed() -> None:
    with pytest.raises(Disconnected):
        read(b"abc", whole=False)


@pytest.mark.parametrize("length", ["-1", "x", "1.5", ""])
def test_length_that_is_none_is_refused(length: str) -> None:
    with pytest.raises(BadRequest, match="Content-Length"):
        read(content_length=length)


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKED = [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate), ("GZIP ", gzip.compress)]


@pytest.mark.parametrize(("encoding", "pack"), PACKED)
def test_compressed_body_is_decompressed(encoding: str, pack: Any) -> None:
    assert read(pack(b"hello" * 100), content_encoding=encoding) == b"hello" * 100


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd", "x" * 500])
def test_unknown_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(UnsupportedMedia, match="gzip and deflate"):
        read(b"abc", content_encoding=encoding)


@pytest.mark.parametrize(("encoding", "pack"), PACKED)
def test_a_bomb_is_refused_without_being_unpacked(encoding: str, pack: Any) -> None:
    bomb = pack(bytes(10**8))
    name = encoding.strip().lower()
    tracemalloc.start()
    with pytest.raises(TooLarge, match="after decompression"):
        decompress(bomb, name, 10**5)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


@pytest.mark.parametrize(("encoding", "pack"), PACKED)
def test_damaged_compressed_body_is_refused(encoding: str, pack: Any) -> None:
    packed = pack(b"hello" * 100)
    for damaged in (packed[:-3], packed + b"x", b"", b"abc"):
        with pytest.raises(BadRequest):
            decompress(damaged, encoding.strip().lower(), LIMIT)


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_whatever_is_sent_as_compressed_is_read_or_refused(body: bytes, encoding: str) -> None:
    try:
        assert len(decompress(body, encoding, LIMIT)) <= LIMIT
    except ServiceError as error:
        assert 400 <= error.status < 500


@pytest.mark.parametrize(
    ("accept", "size", "chosen"),
    [
        (None, 10**6, None),
        ("", 10**6, None),
        ("identity", 10**6, None),
        ("br, zstd", 10**6, None),
        ("gzip", 10**6, "gzip"),
        ("deflate", 10**6, "deflate"),
        ("GZIP;q=0.5, deflate", 10**6, "gzip"),
        ("gzip;q=0, deflate", 10**6, "deflate"),
        ("gzip; q=0.000", 10**6, None),
        ("gzip;q=nan, deflate;q=0.001", 10**6, "deflate"),
        ("gzip", 100, None),
    ],
)
def test_answers_are_compressed_only_when_asked_and_worth_it(accept: str | None, size: int, chosen: str | None) -> None:
    assert choose_encoding(accept, size) == chosen


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_answer_is_read_back(encoding: str) -> None:
    assert decompress(compress(b"hello" * 100, encoding), encoding, LIMIT) == b"hello" * 100
