"""Many point-cloud files through one model: several requests in flight, one output file each, errors kept apart."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lacuna_client.client import Client
from lacuna_client.clouds import npy_bytes
from lacuna_client.errors import LacunaError, Unavailable

Kind = Literal["npy", "label", "ply"]


@dataclass(frozen=True, slots=True)
class Job:
    """How each file is labelled, and where the answers go."""

    model: str
    folder: Path
    kind: Kind
    format: str | None = None
    columns: int | None = None
    attempts: int = 8

    def output(self, source: Path) -> Path:
        """The file that the answer to `source` is written to."""
        return self.folder / f"{source.stem}.{self.kind}"


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one file: where it was written, or why it was not."""

    source: Path
    written: Path | None
    error: str | None = None


def clashes(job: Job, sources: Sequence[Path]) -> list[Path]:
    """Outputs that more than one file would be written to, or that are themselves files to be read."""
    counts = Counter(job.output(source).resolve() for source in sources)
    read = {source.resolve() for source in sources}
    return [path for path, count in counts.items() if count > 1 or path in read]


def run(client: Client, job: Job, sources: Sequence[Path], parallel: int) -> Iterator[Done]:
    """Label all files, `parallel` at a time, and tell of each as it is done; a file that fails stops no other."""
    job.folder.mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="lacuna-client")
    try:
        futures = [pool.submit(label_file, client, job, source) for source in sources]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # whoever stops early waits for what is under way, not for all files


def label_file(client: Client, job: Job, source: Path) -> Done:
    """Send one file and write the answer."""
    try:
        answer = when_there_is_room(lambda: ask(client, job, source), job.attempts)
        path = job.output(source)
        path.write_bytes(answer)
    except (LacunaError, OSError, ValueError) as error:
        return Done(source, None, str(error) or type(error).__name__)
    return Done(source, path)


def ask(client: Client, job: Job, source: Path) -> bytes:
    """The content of the output file: labels as .npy, as SemanticKITTI's .label (uint32), or a coloured .ply."""
    if job.kind == "ply":
        return client.pointcloud(job.model, source, format=job.format, columns=job.columns, accept="ply")
    labels = client.pointcloud(job.model, source, format=job.format, columns=job.columns, accept="npy")
    return labels.astype("<u4").tobytes() if job.kind == "label" else npy_bytes(labels)


def when_there_is_room(request: Callable[[], bytes], attempts: int) -> bytes:
    """Try again while the server says that it is full, as long after as it asks for."""
    for attempt in range(1, attempts + 1):
        try:
            return request()
        except Unavailable as error:
            if error.retry_after_s is None or attempt == attempts:
                raise
            time.sleep(min(error.retry_after_s, 30) * float(np.random.default_rng().uniform(0.5, 1.0)) * attempt)
    raise AssertionError("unreachable: the last attempt returns or raises")
