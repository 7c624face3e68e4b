"""One batch on a device: join its requests, run them, take them apart; and if it fails, find who is guilty."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lacuna_kernels import Batch, DeviceError, Pending, Program, Result, Value, split
from lacuna_service.failures import out_of_memory
from lacuna_service.tickets import Ticket

Outcome = dict[str, Value] | Exception


@dataclass(slots=True, eq=False)
class Job:
    """Tickets that run together on one program; made by the batcher, run by the worker, reported back once.

    probe            a batch that must work: a program that fails it is broken
    outcomes         one for each ticket, in order
    started, ended   on the clock of time.monotonic
    busy_seconds     of the device, over all runs
    broken           why the program can be used no longer
    """

    program: Program
    probe: Batch
    tickets: list[Ticket]
    report: Callable[["Job"], None]
    outcomes: list[Outcome] = field(default_factory=list)
    started: float = 0.0
    ended: float = 0.0
    busy_seconds: float = 0.0
    runs: int = 0
    broken: Exception | None = None

    @property
    def cost(self) -> int:
        """Rows or points."""
        return sum(ticket.cost for ticket in self.tickets)

    def start(self) -> Pending | None:
        """Submit the batch, without those that nobody waits for any more; None if there is nothing to wait for."""
        self.started = time.monotonic()
        self.tickets = [ticket for ticket in self.tickets if not ticket.dropped]
        if not self.tickets:
            return None
        try:
            return self.program.submit(*(ticket.batch for ticket in self.tickets))
        except Exception as error:
            self.blame(error)
            return None

    def wait(self, pending: Pending) -> Exception | None:
        """Wait for the outputs and give each ticket its own; return what went wrong, for `blame`. Any thread may."""
        try:
            self.outcomes = self._outcomes(self.tickets, pending.result())
        except Exception as error:
            return error
        return None

    def blame(self, error: Exception) -> None:
        """Find the guilty of a failed batch and answer the others."""
        self.outcomes = self._blame(self.tickets, error)

    def _outcomes(self, tickets: Sequence[Ticket], result: Result) -> list[Outcome]:
        self.runs += 1
        self.busy_seconds += result.busy_seconds
        return list(split(result.values, [ticket.items for ticket in tickets]))

    def _run(self, tickets: Sequence[Ticket]) -> list[Outcome]:
        try:
            return self._outcomes(tickets, self.program.submit(*(ticket.batch for ticket in tickets)).result())
        except Exception as error:
            return self._blame(tickets, error)

    def _blame(self, tickets: Sequence[Ticket], error: Exception) -> list[Outcome]:
        """Run a failed batch again: in halves if memory ran out, else one by one, so that only the guilty fail."""
        if len(tickets) == 1:
            self._suspect_program(error)
            return [error]
        middle = len(tickets) // 2
        groups = [tickets[:middle], tickets[middle:]] if out_of_memory(error) else [[t] for t in tickets]
        return [outcome for group in groups for outcome in self._run(group)]

    def _suspect_program(self, error: Exception) -> None:
        """After a failure of the device, see whether the program still works for a harmless batch."""
        if not isinstance(error, DeviceError) or self.broken:
            return
        try:
            self.program.submit(self.probe).result()
        except Exception as again:
            self.broken = again
