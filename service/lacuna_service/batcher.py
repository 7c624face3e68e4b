"""Turns requests into batches: a line with limits, deadlines by timer, and batches for the least loaded device."""

import asyncio
import logging
import math
import time
from collections.abc import Callable

from lacuna_kernels import Batch
from lacuna_service.config import ServingConfig
from lacuna_service.errors import DeadlineExceeded, NotReady, QueueFull, TooLarge
from lacuna_service.failures import as_service_error
from lacuna_service.jobs import Job, Outcome
from lacuna_service.journal import Journal
from lacuna_service.replica import Replica
from lacuna_service.tickets import DEFAULT_PRIORITY, HIGHEST_PRIORITY, LOWEST_PRIORITY, Answer, Line, Ticket

log = logging.getLogger(__name__)
TIMER_SLACK_SECONDS = 0.0005  # uvloop rounds to milliseconds, and a timer that comes too early comes in vain


class Batcher:
    """Batches the requests of one model version; lives on the event loop and never waits for a device.

    On an idle device a batch starts at once, with whatever arrived in the same turn of the event loop. While a device
    works, requests gather until the batch is full, the oldest has waited max_delay_ms, or the device is idle again;
    never more batches than the worker's depth are under way.
    """

    def __init__(
        self, config: ServingConfig, replicas: list[Replica], journal: Journal, on_lost: Callable[[str], None]
    ) -> None:
        self._config, self.journal, self.replicas, self._on_lost = config, journal, list(replicas), on_lost
        self._loop = asyncio.get_running_loop()
        self._line = Line()
        self._under_way = 0
        self._pump_is_due = False
        self._delay: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        for replica in replicas:
            replica.worker.feeders.append(self)
            journal.program(replica.worker.name, replica.program)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._line)

    def oldest(self) -> float:
        """When the longest waiting request came; infinity if none waits."""
        return self._line.oldest()

    async def infer(self, batch: Batch, items: int, cost: int, timeout_s: float | None, priority: int) -> Answer:
        """Answer one checked request; raises what the engine's `infer` says."""
        limit = self._config.deadline_ms / 1000
        timeout = limit if timeout_s is None else min(timeout_s, limit)
        ticket = Ticket(batch, items, cost, time.monotonic(), _level(priority), self._loop.create_future())
        self._admit(ticket, timeout)
        timer = self._enter(ticket, timeout)
        try:
            return await ticket.future
        except asyncio.CancelledError:
            if self._leave(ticket):
                self.journal.rejected("cancelled")
            raise
        finally:
            ticket.dropped = True
            timer.cancel()

    def _admit(self, ticket: Ticket, timeout: float) -> None:
        """Refuse at once what could not be answered."""
        config, name = self._config, self.journal.model
        if not self.replicas:
            self.journal.rejected("not_ready")
            raise NotReady(f"model {name!r} has lost its devices")
        if ticket.cost > config.max_batch_cost:
            self.journal.rejected("too_large")
            raise TooLarge(
                f"the request has {ticket.cost} rows, points or clouds, "
                f"model {name!r} takes at most {config.max_batch_cost}"
            )
        if timeout <= 0:
            self.journal.rejected("deadline")
            raise DeadlineExceeded(f"the request to model {name!r} allows no time at all")
        wait = self._expected_wait(ticket)
        if self.waiting >= config.queue_limit_requests or self._line.cost + ticket.cost > config.queue_limit_cost:
            self.journal.rejected("queue_full")
            raise QueueFull(f"the queue of model {name!r} is full: {self.waiting} requests wait", retry_after_s=wait)
        if wait > timeout:
            self.journal.rejected("too_late")
            raise QueueFull(
                f"an answer of model {name!r} is expected in {wait:.3g} s, the request allows {timeout:.3g} s",
                retry_after_s=wait,
            )

    def _expected_wait(self, ticket: Ticket) -> float:
        """Return the expected time to an answer; 0 if nothing is ahead, so that a bad forecast cannot lock us out."""
        replica = min(self.replicas, key=Replica.load)
        if not replica.worker.outstanding and not self._line:
            return 0.0
        cost = self._line.cost_before(ticket.priority) + ticket.cost
        batches = math.ceil(cost / self._config.max_batch_cost)
        return replica.worker.wait_seconds() + replica.forecast.seconds(cost, batches) / len(self.replicas)

    def _enter(self, ticket: Ticket, timeout: float) -> asyncio.TimerHandle:
        self._line.add(ticket)
        self._idle.clear()
        if not self._pump_is_due:  # after this turn of the loop, so that what arrives together runs together
            self._pump_is_due = True
            self._loop.call_soon(self.pump)
        return self._loop.call_later(timeout, self._expire, ticket)

    def _leave(self, ticket: Ticket) -> bool:
        """Take a ticket out of the line; return whether it still stood there."""
        stood = self._line.remove(ticket)
        self._note_idle()
        return stood

    def _expire(self, ticket: Ticket) -> None:
        waited = time.monotonic() - ticket.arrived
        if ticket.future.done():
            return
        where = "while it ran"
        if self._leave(ticket):
            self.journal.rejected("deadline")
            where = "before it could run"
        ticket.future.set_exception(
            DeadlineExceeded(
                f"the deadline of the request to model {self.journal.model!r} passed {where}, {waited:.3g} s"
            )
        )

    def pump(self) -> None:
        """Start what may be started now."""
        self._pump_is_due = False
        while self._line and self.replicas:
            replica = min(self.replicas, key=Replica.load)
            if not self._may_start(replica):
                break
            self._start(replica, self._line.take(self._config.max_batch_cost))
        self._set_delay()

    def _may_start(self, replica: Replica) -> bool:
        under_way = replica.worker.outstanding
        if under_way == 0 or under_way >= replica.worker.depth:
            return under_way == 0
        return self._line.cost >= self._config.max_batch_cost or self._seconds_to_delay() <= 0

    def _seconds_to_delay(self) -> float:
        return self._line.oldest() + self._config.max_delay_ms / 1000 - time.monotonic()

    def _set_delay(self) -> None:
        """Have the oldest request go when it has waited long enough, if a device could take it then."""
        if self._delay is not None:
            self._delay.cancel()
            self._delay = None
        if self._line and any(replica.worker.outstanding < replica.worker.depth for replica in self.replicas):
            seconds = max(0.0, self._seconds_to_delay()) + TIMER_SLACK_SECONDS
            self._delay = self._loop.call_later(seconds, self.pump)

    def _start(self, replica: Replica, tickets: list[Ticket]) -> None:
        job = Job(replica.program, replica.probe, tickets, lambda job: self._report(replica, job))
        self._under_way += 1
        replica.worker.put(job, replica.forecast.seconds(job.cost))

    def _report(self, replica: Replica, job: Job) -> None:
        """Hand out what a batch gave."""
        self._under_way -= 1
        if job.runs == 1:
            replica.forecast.observe(job.cost, job.busy_seconds)
        if job.tickets:
            self.journal.ran(job, replica.device)
            self.journal.program(replica.worker.name, replica.program)
        joules = self.journal.joules(job, replica.device)
        for ticket, outcome in zip(job.tickets, job.outcomes, strict=True):
            self._deliver(ticket, outcome, job, joules)
        if job.broken is not None:
            self._lose(replica, job.broken)
        self._note_idle()

    def _deliver(self, ticket: Ticket, outcome: Outcome, job: Job, joules: float | None) -> None:
        if ticket.future.done():
            return
        if isinstance(outcome, Exception):
            ticket.future.set_exception(as_service_error(outcome, self.journal.model))
            return
        share = None if joules is None else joules * max(1, ticket.cost) / max(1, job.cost)
        waited, took = job.started - ticket.arrived, job.ended - job.started
        answer = Answer(outcome, ticket.items, ticket.cost, waited, took, share)
        self.journal.answered(answer)
        ticket.future.set_result(answer)

    def _lose(self, replica: Replica, error: Exception) -> None:
        log.error("model %r is lost on %s", self.journal.model, replica.worker.name, exc_info=error)
        if replica in self.replicas:
            self.replicas.remove(replica)
        if not self.replicas:
            reason = f"its program failed and cannot be trusted any more: {error}"
            self.abandon(f"model {self.journal.model!r}: {reason}")
            self._on_lost(reason)

    def abandon(self, reason: str) -> None:
        """Refuse all that waits."""
        for ticket in self._line.take(2**62):
            if not ticket.future.done():
                self.journal.rejected("not_ready")
                ticket.future.set_exception(NotReady(reason))
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._line and not self._under_way:
            self._idle.set()

    async def drain(self) -> None:
        """Wait until nothing waits and nothing runs."""
        await self._idle.wait()


def _level(priority: int) -> int:
    """1 is served first; 0 asks for nothing and stands between 1 and 3."""
    return min(max(priority or DEFAULT_PRIORITY, HIGHEST_PRIORITY), LOWEST_PRIORITY)
