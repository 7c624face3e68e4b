"""One request on its way, and the line that requests wait in."""

import asyncio
from dataclasses import dataclass, field
from itertools import chain
from math import inf

from lacuna_kernels import Batch, Value

HIGHEST_PRIORITY, DEFAULT_PRIORITY, LOWEST_PRIORITY = 1, 2, 10


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request gave.

    values          the outputs by name, on the CPU
    items           rows or clouds; cost: rows or points
    energy_joules   modelled from the running power; None without a meter
    """

    values: dict[str, Value]
    items: int
    cost: int
    queue_seconds: float
    compute_seconds: float
    energy_joules: float | None


@dataclass(slots=True, eq=False)
class Ticket:
    """One checked request; made, changed and forgotten on the event loop.

    arrived   by time.monotonic()
    dropped   nobody waits any more; the worker reads it before it starts the work
    """

    batch: Batch
    items: int
    cost: int
    arrived: float
    priority: int
    future: asyncio.Future[Answer]
    dropped: bool = False


@dataclass(slots=True)
class _Level:
    """Tickets of one priority, in the order they came, and their cost."""

    tickets: dict[Ticket, None] = field(default_factory=dict)
    cost: int = 0


class Line:
    """Tickets that wait: those of priority 1 before 2, and so on; among equals the first that came."""

    def __init__(self) -> None:
        self._levels = {priority: _Level() for priority in range(HIGHEST_PRIORITY, LOWEST_PRIORITY + 1)}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def cost(self) -> int:
        """Cost of all."""
        return self.cost_before(LOWEST_PRIORITY)

    def cost_before(self, priority: int) -> int:
        """Cost of all that a newcomer of that priority would have to wait for."""
        return sum(self._levels[level].cost for level in range(HIGHEST_PRIORITY, priority + 1))

    def add(self, ticket: Ticket) -> None:
        """Put a ticket at the end of its priority."""
        level = self._levels[ticket.priority]
        level.tickets[ticket] = None
        level.cost += ticket.cost
        self._count += 1

    def remove(self, ticket: Ticket) -> bool:
        """Take a ticket out, wherever it stands; return whether it was there."""
        level = self._levels[ticket.priority]
        if ticket not in level.tickets:
            return False
        del level.tickets[ticket]
        level.cost -= ticket.cost
        self._count -= 1
        return True

    def oldest(self) -> float:
        """When the longest waiting ticket came; infinity if none waits."""
        levels = [level.tickets for level in self._levels.values() if level.tickets]
        return min((next(iter(tickets)).arrived for tickets in levels), default=inf)

    def take(self, limit: int) -> list[Ticket]:
        """Take tickets in order while their cost fits the limit, and the first in any case; none overtakes."""
        taken = self._fitting(limit)
        for ticket in taken:
            self.remove(ticket)
        return taken

    def _fitting(self, limit: int) -> list[Ticket]:
        fitting: list[Ticket] = []
        total = 0
        for ticket in chain.from_iterable(level.tickets for level in self._levels.values()):
            total += ticket.cost
            if total > limit and fitting:
                break
            fitting.append(ticket)
        return fitting
