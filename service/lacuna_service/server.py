"""Running the application with uvicorn: one process, signals that drain it, and its exit status."""

import errno
import gc
import logging
import math
import signal
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn

from lacuna_service.app import create_app
from lacuna_service.engine import Engine, EngineConfig
from lacuna_service.logs import configure
from lacuna_service.metrics import Metrics
from lacuna_service.power import PowerSampler
from lacuna_service.protocol import Protocol
from lacuna_service.settings import Settings
from lacuna_service.version import program_version

logger = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may hold the interpreter against another: at Python's 5 ms the worker waits for the event loop."""


class _Server(uvicorn.Server):
    """A server that SIGTERM and SIGINT end in good order; uvicorn's own dies of the signal after it has shut down."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            logger.info("listening", extra={"url": f"http://{f'[{host}]' if ':' in host else host}:{port}"})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("draining")
        await super().shutdown(sockets)
        logger.info("stopped")


def run(settings: Settings) -> int:
    """Serve until a signal comes; returns the exit status: 0 after a drained shutdown, 1 if it could not start."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    configure(settings.log_level, settings.log_format)
    failures: list[str] = []
    try:
        sockets = _listen(settings.host, settings.port)
    except OSError as error:
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        more = "; --port or LACUNA_PORT gives another port, 0 one that is free" if taken else ""
        logger.critical("the server cannot listen on %s port %d: %s%s", settings.host, settings.port, error, more)
        return 1

    def stop() -> None:
        failures.append("engine")
        server.should_exit = True

    metrics = Metrics()
    engine = Engine(engine_config(settings), metrics, PowerSampler(metrics))
    app = create_app(settings, engine, program_version(), stop)
    server = _Server(
        uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=math.ceil(settings.drain_s),
        )
    )
    gc.freeze()  # modules stay: collections need not walk them again and again
    try:
        server.run(sockets)
    except SystemExit:  # uvicorn's, with a status of its own, where the application does not start; it has logged why
        return 1
    return 1 if failures else 0


def _listen(host: str, port: int) -> list[socket.socket]:
    """A socket for every address of a host, before anything is loaded; raises OSError."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = dict.fromkeys((family, address) for family, _, _, _, address in found)
    return [socket.create_server(address, family=family) for family, address in addresses]


def engine_config(settings: Settings) -> EngineConfig:
    """What the engine needs of the settings."""
    return EngineConfig(
        repository=settings.repository,
        device=settings.device,
        model_control=settings.model_control,
        startup=settings.model or None,
        cpu_threads=settings.cpu_threads,
    )
