"""Divides what a device's energy counter shows among the models that used it: pure arithmetic, no device.

The counter of a GPU is refreshed every 20 to 100 ms, so a batch of a millisecond cannot be metered alone. Energy is
divided window by window instead: of E millijoules in T seconds, min(E, P_idle * (T - busy)) belong to `idle`, and the
rest to the batches by busy time, inside a batch by cost. Everything is in whole millijoules, so that the shares of
all models and `idle` always add up to the counter's difference exactly.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

IDLE = "idle"
STEADY_SECONDS = 2.0
BATCHES_KEPT = 2**16
"""Unsettled batches: far more than a device runs between two readings. If its counter cannot be read, the oldest go."""

_FADE = 0.9


@dataclass(frozen=True, slots=True)
class Busy:
    """A batch on a device: when it ran, in seconds of one clock, and the cost of its requests by model."""

    start: float
    end: float
    shares: tuple[tuple[str, float], ...]

    def within(self, start: float, end: float) -> float:
        """Seconds of the batch that lie in a window."""
        return max(0.0, min(self.end, end) - max(self.start, start))


@dataclass(slots=True)
class Ledger:
    """The account of one device, settled up to `settled_at`, where the counter showed `counter_mj`.

    idle_watts     the lowest steady power seen with nothing running, at first what the meter showed at the start
    running_watts  energy per busy second beyond the idle share, of the last seconds with batches; None before any
    """

    settled_at: float
    counter_mj: int
    idle_watts: float | None = None
    running_watts: float | None = None
    _batches: deque[Busy] = field(default_factory=lambda: deque(maxlen=BATCHES_KEPT))
    _steady: tuple[float, int] = (0.0, 0)
    _recent: tuple[float, float] = (0.0, 0.0)

    def report(self, busy: Busy) -> None:
        """Add a finished batch."""
        self._batches.append(busy)

    def settle(self, until: float, counter_mj: int) -> dict[str, int]:
        """Divide the energy since the last settlement: millijoules by model and `idle`, which add up to the difference.

        A counter that fell (a driver loaded anew) starts again from what it shows, with nothing to divide.
        """
        start, seconds = self.settled_at, until - self.settled_at
        energy_mj = max(0, counter_mj - self.counter_mj)
        self.settled_at, self.counter_mj = until, counter_mj
        batches = [(busy, busy.within(start, until)) for busy in self._batches]
        self._batches = deque((busy for busy in self._batches if busy.end > until), BATCHES_KEPT)
        busy_seconds = sum(part for _, part in batches)
        self._learn_idle(seconds, energy_mj, busy_seconds)
        if not busy_seconds:
            return {IDLE: energy_mj}
        idle_seconds = max(0.0, seconds - busy_seconds)
        idle_mj = min(energy_mj, round((self.idle_watts or 0.0) * idle_seconds * 1000))
        self._learn_running(busy_seconds, (energy_mj - idle_mj) / 1000)
        return {IDLE: idle_mj} | _divide(energy_mj - idle_mj, batches)

    def _learn_idle(self, seconds: float, energy_mj: int, busy_seconds: float) -> None:
        if busy_seconds:
            self._steady = (0.0, 0)
            return
        total, joined = self._steady[0] + seconds, self._steady[1] + energy_mj
        self._steady = (total, joined)
        if total >= STEADY_SECONDS:
            watts = joined / 1000 / total
            self.idle_watts = watts if self.idle_watts is None else min(self.idle_watts, watts)
            self._steady = (0.0, 0)

    def _learn_running(self, busy_seconds: float, joules: float) -> None:
        seconds, energy = self._recent
        self._recent = (seconds * _FADE + busy_seconds, energy * _FADE + joules)
        self.running_watts = self._recent[1] / self._recent[0]


def _divide(energy_mj: int, batches: Sequence[tuple[Busy, float]]) -> dict[str, int]:
    weights: dict[str, float] = {}
    for busy, seconds in batches:
        cost = sum(share for _, share in busy.shares) or 1.0
        for model, share in busy.shares:
            weights[model] = weights.get(model, 0.0) + seconds * share / cost
    return dict(zip(weights, apportion(energy_mj, list(weights.values())), strict=True))


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Divide a whole number by weights, by the largest remainders: whole parts that add up to it exactly."""
    whole = sum(weights)
    if not whole:
        return [total, *[0] * (len(weights) - 1)]
    exact = [total * weight / whole for weight in weights]
    parts = [int(part) for part in exact]
    order = sorted(range(len(parts)), key=lambda i: exact[i] - parts[i], reverse=True)
    left = total - sum(parts)
    for i in range(abs(left)):
        parts[order[i % len(order)]] += 1 if left > 0 else -1
    return parts
