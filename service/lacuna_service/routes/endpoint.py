"""What the inference endpoints share: a POST to a model as plain ASGI, counted, past all of the framework."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl
from weakref import WeakKeyDictionary

from lacuna_service.body import READ_INTO, Body, Disconnected, Receive, read_body
from lacuna_service.engine import Answer, Engine, ServedModel
from lacuna_service.errors import ServiceError
from lacuna_service.metrics import Metrics
from lacuna_service.routes.replies import Reply, Send
from lacuna_service.signature import Signature

WATCH_AFTER_S = 0.005
"""Only requests that take longer are watched for a client that goes away: the watch costs a task."""


@dataclass(slots=True)
class Exchange:
    """One request: its model, headers (lower case), query, whole body, and where its time went, in seconds."""

    model: ServedModel
    headers: Mapping[str, str]
    query: Mapping[str, str]
    body: Body
    receive: Receive
    items: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("decode", "queue", "compute", "encode"), 0.0)
    )

    def spent(self, step: str, since: float) -> None:
        """Note that a step began at `since` (perf_counter) and is over now."""
        self.seconds[step] = time.perf_counter() - since

    def parameters(self, answer: Answer) -> dict[str, float]:
        """What an answer tells of itself if it is asked: `?energy=1` for its joules, where there is a meter."""
        if self.query.get("energy") == "1" and answer.energy_joules is not None:
            return {"energy_joules": answer.energy_joules}
        return {}


class ModelEndpoint(ABC):
    """An ASGI application at `/v2/models/{model}[/versions/{version}]/...`; subclasses answer one exchange."""

    def __init__(self, engine: Engine, metrics: Metrics, body_limit_bytes: int) -> None:
        self.engine, self.metrics, self._limit = engine, metrics, body_limit_bytes
        self._signatures: WeakKeyDictionary[ServedModel, Signature] = WeakKeyDictionary()

    @abstractmethod
    async def answer(self, exchange: Exchange) -> Reply:
        """Decode, infer, encode; raises ServiceError."""

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request; raises ServiceError, which the application turns into an answer."""
        began = time.perf_counter()
        model = self.engine.get(scope["path_params"]["model"], scope["path_params"].get("version"))
        model.statistics.arrived()
        outcome = "internal"
        try:
            headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
            body = await read_body(receive, headers, self._limit, scope.get("extensions", {}).get(READ_INTO))
            self.metrics.request_bytes.labels(model.name).inc(len(body))
            exchange = Exchange(model, headers, _query(scope), body, receive)
            reply = await self.answer(exchange)
            self._count_success(exchange, time.perf_counter() - began)
            sent = await reply.send(send, headers.get("accept-encoding"))
            self.metrics.response_bytes.labels(model.name).inc(sent)
            outcome = "ok"
        except (Disconnected, asyncio.CancelledError) as error:
            outcome = "disconnected"
            if isinstance(error, asyncio.CancelledError):
                raise
        except ServiceError as error:
            outcome = error.outcome
            raise
        finally:
            self.metrics.requests.labels(model.name, outcome).inc()
            self.metrics.request_seconds.labels(model.name).observe(time.perf_counter() - began)
            if outcome != "ok":
                model.statistics.failed(time.perf_counter() - began)

    def signature(self, model: ServedModel) -> Signature:
        """The tensors of a model; worked out once for as long as it is served."""
        found = self._signatures.get(model)
        if found is None:
            found = self._signatures[model] = Signature(model.graph)
        return found

    def _count_success(self, exchange: Exchange, seconds: float) -> None:
        model, spent = exchange.model, exchange.seconds
        self.metrics.decode_seconds.labels(model.name).observe(spent["decode"])
        self.metrics.encode_seconds.labels(model.name).observe(spent["encode"])
        model.statistics.succeeded(
            exchange.items, seconds, spent["queue"], spent["decode"], spent["compute"], spent["encode"]
        )


class ClientWatch:
    """While it is entered, a client that goes away cancels the wait inside; leaving it then raises Disconnected."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._gone = receive, False
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._waiting = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._start)
        return self

    def _start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._waiting is not None:
            self._gone = True
            self._waiting.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._gone and self._waiting is not None and kind is asyncio.CancelledError:
            self._waiting.uncancel()
            raise Disconnected from error


def _query(scope: Mapping[str, Any]) -> dict[str, str]:
    text: bytes = scope["query_string"]
    return dict(parse_qsl(text.decode("latin-1"), keep_blank_values=True)) if text else {}
