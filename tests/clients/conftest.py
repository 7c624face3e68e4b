"""A tiny real HTTP server that speaks the protocol by its own means, so that the client is not its own judge."""

import io
import json
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Seen:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass
class EchoServer:
    """Echoes inference inputs as outputs; labels each point of a .bin cloud with its first column.

    planned  answers to give instead, in order, to whatever is asked
    """

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    planned: list[Answer] = field(default_factory=list)

    @property
    def last(self) -> Seen:
        return self.seen[-1]

    def answer(self, request: Seen) -> Answer:
        self.seen.append(request)
        if self.planned:
            return self.planned.pop(0)
        if request.path.endswith("/infer"):
            return echo(request)
        if request.path.endswith("/pointcloud"):
            return label(request)
        pages: dict[str, object] = {
            "/v2": {"name": "echo", "version": "9", "extensions": ["binary_tensor_data"]},
            "/v2/health/live": {},
            "/v2/health/ready": {},
            "/v2/models/echo": {"name": "echo", "versions": ["1"]},
            "/v2/models/echo/ready": {},
            "/v2/models/echo/versions/1/stats": {"model_stats": []},
            "/v2/repository/index": [{"name": "echo", "version": "1", "state": "READY", "reason": ""}],
            "/v2/repository/models/echo/load": {},
            "/v2/repository/models/echo/unload": {},
        }
        if request.path in pages:
            return 200, {}, json.dumps(pages[request.path]).encode()
        return 404, {}, json.dumps({"error": f"no page {request.path}"}).encode()


def echo(request: Seen) -> Answer:
    length = request.headers.get("inference-header-content-length")
    end = len(request.body) if length is None else int(length)
    header = json.loads(request.body[:end])
    binary = header["parameters"]["binary_data_output"]
    names = [entry["name"] for entry in header.get("outputs", header["inputs"])]
    outputs, chunks, start = [], {}, end
    for entry in header["inputs"]:
        if "binary_data_size" in entry.get("parameters", {}):
            chunks[entry["name"]] = request.body[start : start + entry["parameters"]["binary_data_size"]]
            start += entry["parameters"]["binary_data_size"]
    outputs = [entry for name in names for entry in header["inputs"] if entry["name"] == name]
    answer = {"model_name": "echo", "model_version": "1", "id": header.get("id", ""), "outputs": outputs}
    answer["parameters"] = {"asked": header["parameters"], "energy": request.query.get("energy")}
    text = json.dumps(answer).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))} if binary else {}
    return 200, headers, text + b"".join(chunks[name] for name in names if name in chunks)


def label(request: Seen) -> Answer:
    columns = int(request.query.get("columns", ["4"])[0])
    if request.query["format"] != ["bin"] or len(request.body) % (4 * columns):
        return 400, {}, json.dumps({"error": f"{len(request.body)} bytes are not rows of {columns} floats"}).encode()
    first = [int(row[0]) for row in struct.iter_unpack(f"<{columns}f", request.body)]
    accept = request.headers["accept"]
    if accept == "application/json":
        answer = {"model_name": "echo", "points": len(first), "classes": ["zero", "one", "two"], "labels": first}
        return 200, {}, json.dumps(answer).encode()
    buffer = io.BytesIO()
    np.save(buffer, np.array(first, np.int32))
    return 200, {}, buffer.getvalue() if accept == "application/x-npy" else b"ply\nof " + str(len(first)).encode()


@pytest.fixture
def server() -> Iterator[EchoServer]:
    state = EchoServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, more, answer = state.answer(Seen(self.command, parts.path, parse_qs(parts.query), headers, body))
            self.send_response(status)
            for name, value in {**more, "Content-Length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do  # noqa: N815 - the names that http.server looks for

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    yield state
    http.shutdown()
    thread.join()
    http.server_close()
