"""The one thread that owns a device: it opens it, runs every batch on it, and closes it."""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch

from lacuna_kernels import Backend, Batch, Pending, Program
from lacuna_service.jobs import Job

T = TypeVar("T")


class Feeder(Protocol):
    """Whoever has batches for a device."""

    def oldest(self) -> float:
        """When its longest waiting request came; infinity if none waits."""
        ...

    def pump(self) -> None:
        """Start what may be started now."""
        ...


@dataclass(frozen=True, slots=True)
class _Call:
    """Something else to do on the thread, between batches."""

    action: Callable[[], Any]
    answer: Callable[[Any, Exception | None], None]
    last: bool = False


@dataclass(frozen=True, slots=True)
class _Failure:
    """A batch that has to be run again."""

    job: Job
    error: Exception


class Worker:
    """A device, seen from the event loop; only the thread inside touches the device.

    Where the device computes by itself, the outputs are waited for on threads beside it, one for each batch that may
    be under way, so that a batch that waits for a larger plan to be built does not hold up the others.

    depth         batches that may be under way at once: on a GPU the next is copied in while one computes; a CPU
                  computes as it submits, and a second batch would only keep requests from joining it
    outstanding   batches handed over and not yet reported
    """

    def __init__(self, name: str, open_device: Callable[[], Backend], cpu_threads: int = 1) -> None:
        self.name, self.depth, self.outstanding = name, 1, 0
        self.feeders: list[Feeder] = []
        self._open_device, self._cpu_threads = open_device, cpu_threads
        self._inbox: queue.SimpleQueue[Job | _Call | _Failure] = queue.SimpleQueue()
        self._failed: deque[_Failure] = deque()
        self._under_way: list[Future[None]] = []
        self._waiters: ThreadPoolExecutor
        self._free_at = 0.0

    async def start(self) -> Backend:
        """Start the thread and open the device on it; raises DeviceError."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._serve, name=f"lacuna-{self.name}", daemon=True)
        self._thread.start()
        try:
            self.backend: Backend = await self._ask(self._open)
        except BaseException:
            self._inbox.put(_Call(lambda: None, lambda value, error: None, last=True))
            raise
        self.depth = 1 if self.backend.device.uuid is None else 2
        self._waiters = ThreadPoolExecutor(self.depth, thread_name_prefix=f"lacuna-{self.name}-wait")
        return self.backend

    async def stop(self) -> None:
        """Finish what was handed over, close the device and end the thread."""
        await self._ask(self.backend.close, last=True)
        await asyncio.to_thread(self._thread.join)
        self._waiters.shutdown(wait=False)

    def put(self, job: Job, expected_seconds: float) -> None:
        """Hand a batch over; `job.report(job)` is called on the event loop when it is done."""
        self.outstanding += 1
        self._free_at = max(self._free_at, time.monotonic()) + expected_seconds
        self._inbox.put(job)

    def wait_seconds(self) -> float:
        """Return the expected time until all that was handed over is done."""
        return max(0.0, self._free_at - time.monotonic()) if self.outstanding else 0.0

    async def close(self, program: Program) -> None:
        """Close a program, after the batches that were handed over before."""
        await self._ask(program.close)

    async def warm_up(self, program: Program, batch: Batch) -> None:
        """Run one batch past all queues and forget what it gives; raises what the program raises."""
        await self._ask(lambda: program.submit(batch).result())

    def _reported(self, job: Job) -> None:
        self.outstanding -= 1
        if not self.outstanding:
            self._free_at = 0.0
        if job.broken is None:  # the device comes first, the answers while it works
            self._pump()
            job.report(job)
        else:
            job.report(job)
            self._pump()

    def _pump(self) -> None:
        for feeder in sorted(self.feeders, key=lambda feeder: feeder.oldest()):
            feeder.pump()

    async def _ask(self, action: Callable[[], T], *, last: bool = False) -> T:
        future: asyncio.Future[Any] = self._loop.create_future()

        def settle(value: Any, error: Exception | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        self._inbox.put(_Call(action, lambda *outcome: self._tell(settle, *outcome), last))
        return cast(T, await future)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        self._loop.call_soon_threadsafe(function, *arguments)

    # What follows runs on the thread.

    def _open(self) -> Backend:
        backend = self._open_device()
        if backend.device.uuid is None:
            torch.set_num_threads(self._cpu_threads)  # holds only for the thread that says it
        return backend

    def _serve(self) -> None:
        while self._step(self._inbox.get()):
            pass

    def _step(self, item: "Job | _Call | _Failure") -> bool:
        """Start a batch, answer a call, or run a failed batch again; return whether to go on."""
        if isinstance(item, Job):
            self._start(item)
        elif isinstance(item, _Call):
            self._finish_all()
            self._answer(item)
            return not item.last
        self._run_failed_again()
        return True

    def _start(self, job: Job) -> None:
        pending = job.start()
        if pending is None:
            self._end(job)
        elif self.depth > 1:  # wait elsewhere, and be free for the next batch
            self._under_way = [future for future in self._under_way if not future.done()]
            self._under_way.append(self._waiters.submit(self._wait, job, pending))
        elif (error := job.wait(pending)) is not None:
            self._failed.append(_Failure(job, error))
        else:
            self._end(job)

    def _wait(self, job: Job, pending: Pending) -> None:
        if (error := job.wait(pending)) is not None:
            self._failed.append(_Failure(job, error))
            self._inbox.put(self._failed[-1])  # to wake the thread
        else:
            self._end(job)

    def _run_failed_again(self) -> None:
        while self._failed:
            failure = self._failed.popleft()
            failure.job.blame(failure.error)
            self._end(failure.job)

    def _finish_all(self) -> None:
        wait(self._under_way)
        self._run_failed_again()

    def _end(self, job: Job) -> None:
        job.ended = time.monotonic()
        self._tell(self._reported, job)

    def _answer(self, call: _Call) -> None:
        try:
            value = call.action()
        except Exception as error:
            call.answer(None, error)
        else:
            call.answer(value, None)
