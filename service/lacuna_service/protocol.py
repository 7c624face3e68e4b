"""HTTP as uvicorn speaks it, but large bodies go from the socket straight to where they are wanted.

uvicorn hands a body over in pieces of about 64 KB and stops reading for each: two megabytes cost some thirty turns of
the event loop, and five copies under the interpreter's lock. Here the application may name memory for a body, and the
kernel copies into it while other threads run.
"""

import asyncio
from functools import partial
from typing import Any, cast
from weakref import ReferenceType, ref

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from lacuna_service.body import READ_INTO


class Protocol(HttpToolsProtocol):
    """One connection."""

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP with an error like every other."""
        super().send_400_response(orjson.dumps({"error": msg}).decode())

    def on_headers_complete(self) -> None:
        """Start a request, with the extension."""
        super().on_headers_complete()
        scope = cast(dict[str, Any], self.scope)  # its type knows of no extensions of others
        # weak, as the scope belongs to both: else every request would wait for the collector of cycles
        scope["extensions"] = {READ_INTO: partial(_read_into, ref(self), ref(self.cycle))}

    def read_into(self, cycle: RequestResponseCycle, memory: memoryview) -> bool:
        """Read the rest of a request's body straight into memory, unless it has come or will not."""
        came = cycle.body
        if not cycle.more_body or self.transport.is_closing():
            return False
        memory[: len(came)] = came
        cycle.body = bytearray()
        self.transport.set_protocol(_Body(self, memory[len(came) :]))
        return True

    def end_body(self) -> None:
        """The body is whole. The parser, which has not seen it, gives way to one for the next request."""
        self.transport.set_protocol(self)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.on_message_complete()


def _read_into(http: ReferenceType[Protocol], cycle: ReferenceType[RequestResponseCycle], memory: memoryview) -> bool:
    """As the extension has it; says no once the connection is gone."""
    connection, request = http(), cycle()
    return connection is not None and request is not None and connection.read_into(request, memory)


class _Body(asyncio.BufferedProtocol):
    """Takes the place of a connection's protocol until the rest of a body has been read."""

    def __init__(self, http: Protocol, rest: memoryview) -> None:
        self._http, self._rest = http, rest

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._rest

    def buffer_updated(self, nbytes: int) -> None:
        self._rest = self._rest[nbytes:]
        if not self._rest:
            self._http.end_body()

    def eof_received(self) -> None:
        self._http.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()
