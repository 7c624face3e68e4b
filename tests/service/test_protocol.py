"""Large bodies are read straight into memory, on both event loops: whole, in any pieces, one after the other."""

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from lacuna_service.body import INLINE_BYTES, READ_INTO, Disconnected, read_body
from lacuna_service.errors import TooLarge
from lacuna_service.protocol import Protocol

LIMIT = 4 * 2**20
BODY = random.Random(0).randbytes(10 * INLINE_BYTES + 5)


class App:
    """Answers with the body that it has read; `seen` tells of each request whether it was read straight."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        status, body = 200, b""
        try:
            read = await read_body(receive, headers, LIMIT, scope["extensions"][READ_INTO])
            self.seen.append("straight" if isinstance(read, memoryview) else "parts")
            body = bytes(read)
        except (TooLarge, Disconnected) as error:
            self.seen.append(type(error).__name__)
            status = 413
        length = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": length})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def talk(request: Any) -> Callable[[Callable[..., Awaitable[None]]], App]:
    """Let a client talk to an application over one connection."""

    async def serve(app: App, client: Callable[..., Awaitable[None]]) -> None:
        config, state = uvicorn.Config(app, ws="none", lifespan="off", log_config=None), ServerState()
        config.load()
        server = await asyncio.get_running_loop().create_server(lambda: Protocol(config, state, {}), "127.0.0.1", 0)
        async with asyncio.timeout(60):
            streams = await asyncio.open_connection(*server.sockets[0].getsockname())
            await client(*streams)
            streams[1].close()
            while state.tasks or state.connections:  # noqa: ASYNC110 - uvicorn tells nobody of their end
                await asyncio.sleep(0.001)
        server.close()

    def run(client: Callable[..., Awaitable[None]]) -> App:
        app = App()
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(serve(app, client))
        return app

    return run


def head(body: bytes, more: str = "") -> bytes:
    return f"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
    return int(lines[0].split()[1]), await reader.readexactly(length)


@pytest.mark.parametrize("pieces", [(), (-len(BODY),), (-len(BODY) + 100, -200_000), (-1,), (-1000, -999, -1)], ids=str)
def test_a_large_body_is_whole_in_whatever_pieces_it_comes(talk: Any, pieces: tuple[int, ...]) -> None:
    message = head(BODY) + BODY
    cuts = [0, *(len(message) + at for at in pieces), len(message)]

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):  # on one connection
            for begin, end in pairwise(cuts):
                writer.write(message[begin:end])
                await writer.drain()
                await asyncio.sleep(0.01)
            assert await answer(reader) == (200, BODY)

    assert talk(client).seen == ["straight"] * 2


def test_requests_that_follow_at_once_are_answered_in_order(talk: Any) -> None:
    bodies = [BODY, b"small", BODY[::-1], b"", BODY[:INLINE_BYTES], BODY]

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(head(body) + body for body in bodies))
        for body in bodies:
            assert await answer(reader) == (200, body)

    assert talk(client).seen[0] == "straight"


@pytest.mark.parametrize("size, seen", [(INLINE_BYTES, "parts"), (INLINE_BYTES + 1, "straight")])
def test_a_body_is_read_straight_from_a_size_on(talk: Any, size: int, seen: str) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(BODY[:size]) + BODY[: size // 2])
        await asyncio.sleep(0.05)
        writer.write(BODY[size // 2 : size])
        assert await answer(reader) == (200, BODY[:size])

    assert talk(client).seen == [seen]


def test_large_bodies_that_have_come_when_they_are_asked_for_are_whole(talk: Any) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for size in (INLINE_BYTES + 1, INLINE_BYTES + 50_000) * 3:
            writer.write(head(BODY[:size]) + BODY[:size])
            assert await answer(reader) == (200, BODY[:size])

    assert len(talk(client).seen) == 6


def test_an_answer_that_nobody_reads_goes_on_once_it_is_read_while_the_next_body_comes(talk: Any) -> None:
    bodies = [random.Random(seed).randbytes(LIMIT) for seed in (1, 2)]

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in bodies:
            writer.write(head(body) + body[:-1])
            await asyncio.sleep(0.1)
            writer.write(body[-1:])
        await asyncio.sleep(0.3)
        for body in bodies:
            assert await answer(reader) == (200, body)

    assert talk(client).seen == ["straight"] * 2


def test_a_body_comes_in_parts_where_there_is_no_memory_for_all_that_is_announced(talk: Any, monkeypatch: Any) -> None:
    def nothing(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("lacuna_service.body.np.empty", nothing)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(BODY) + BODY)
        assert await answer(reader) == (200, BODY)

    assert talk(client).seen == ["parts"]


def test_a_request_is_gone_once_it_is_answered(talk: Any) -> None:
    left: list[Any] = []

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for size in (0, 10, len(BODY), 20):
            writer.write(head(BODY[:size]) + BODY[:size])
            assert await answer(reader) == (200, BODY[:size])
        left.extend(each for each in gc.get_objects() if isinstance(each, RequestResponseCycle))

    gc.collect()
    gc.disable()
    try:
        talk(client)
    finally:
        gc.enable()
    assert len(left) <= 1


@pytest.mark.parametrize("zeros", [1, 12, 40])
def test_a_length_with_zeros_in_front_is_as_long_as_it_says(talk: Any, zeros: int) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(BODY).replace(b"Length: ", b"Length: " + b"0" * zeros) + BODY)
        assert await answer(reader) == (200, BODY)

    assert talk(client).seen == ["straight"]


@pytest.mark.parametrize("more", ["Content-Length: 200000\r\n", "Transfer-Encoding: chunked\r\n"])
def test_two_ways_to_say_where_a_body_ends_are_refused(talk: Any, more: str) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(BODY, more) + BODY)
        assert (await answer(reader))[0] == 400

    assert talk(client).seen == []


def test_a_body_without_a_length_comes_in_parts(talk: Any) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
        assert await answer(reader) == (200, BODY)

    assert talk(client).seen == ["parts"]


def test_a_client_that_wants_to_be_asked_is_asked(talk: Any) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(BODY, "Expect: 100-continue\r\n"))
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")
        writer.write(BODY)
        assert await answer(reader) == (200, BODY)

    assert talk(client).seen == ["straight"]


def test_a_body_above_the_limit_is_refused_before_it_comes(talk: Any) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(bytes(LIMIT + 1)))
        assert await answer(reader) == (413, b"")
        writer.write(bytes(LIMIT + 1) + head(BODY) + BODY)
        assert await answer(reader) == (200, BODY)

    assert talk(client).seen == ["TooLarge", "straight"]


@pytest.mark.parametrize("sent", [0, 10, 3 * INLINE_BYTES])
def test_a_client_that_goes_away_is_noticed(talk: Any, sent: int) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(BODY) + BODY[:sent])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()

    assert talk(client).seen == ["Disconnected"]


def test_a_client_that_ends_its_side_too_early_is_noticed(talk: Any) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(BODY) + BODY[:-1])
        writer.write_eof()
        assert await reader.read() == b""

    assert talk(client).seen == ["Disconnected"]
