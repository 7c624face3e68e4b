"""A server in a process of its own, as a user starts it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S, STOP_S = 120.0, 60.0


@dataclass
class Running:
    """A process that serves, and its log so far."""

    process: "subprocess.Popen[bytes]"
    log_file: Path
    url: str = ""

    @property
    def address(self) -> str:
        """Host and port, as tritonclient wants them."""
        return self.url.removeprefix("http://")

    def log(self) -> list[dict[str, Any]]:
        """Every line of the log so far; a line that is no JSON fails."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    def wait_for(self, message: str) -> dict[str, Any]:
        """Wait for a line of the log with that message."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            for line in self.log() if self.log_file.read_bytes().endswith(b"\n") else []:
                if line["message"] == message:
                    return line
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no {message!r} in the log:\n{self.log_file.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S)


@contextmanager
def started(repository: Path, *options: str, **variables: str) -> Iterator[Running]:
    """Start `python -m lacuna_service serve` on the CPU, by default on a free port; end it if it has not ended."""
    command = [sys.executable, "-m", "lacuna_service", "serve", "--repository", str(repository)]
    command += ["--port", "0", "--device", "cpu", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LACUNA_")}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        log_file = Path(folder) / "log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(command, env=environment | variables, stdout=log, stderr=log)
        try:
            yield Running(process, log_file)
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def serving(repository: Path, *options: str, **variables: str) -> Iterator[Running]:
    """The same, once it is ready."""
    with started(repository, *options, **variables) as running:
        running.url = running.wait_for("listening")["url"]
        running.wait_for("ready")
        yield running
