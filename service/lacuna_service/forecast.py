"""How long a batch will take: a + b * cost, fitted to the batches that ran."""

from dataclasses import dataclass

KEPT = 0.98  # weight that an observation keeps with each later one: about the last 50 count
ENOUGH = 8


@dataclass(slots=True)
class Forecast:
    """Exponentially weighted least squares of seconds against cost, with neither term below zero."""

    seen: int = 0
    _n: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def observe(self, cost: int, seconds: float) -> None:
        """Learn from one batch."""
        self.seen += 1
        self._n = KEPT * self._n + 1
        self._x = KEPT * self._x + cost
        self._y = KEPT * self._y + seconds
        self._xx = KEPT * self._xx + cost * cost
        self._xy = KEPT * self._xy + cost * seconds

    def seconds(self, cost: int, batches: int = 1) -> float:
        """Return the expected time of so many batches with so much cost in all; 0 until enough were seen."""
        if self.seen < ENOUGH:
            return 0.0
        a, b = self._line()
        return a * batches + b * cost

    def _line(self) -> tuple[float, float]:
        mean_x, mean_y = self._x / self._n, self._y / self._n
        variance = self._xx / self._n - mean_x * mean_x
        covariance = self._xy / self._n - mean_x * mean_y
        if variance <= 1e-9 * max(1.0, mean_x * mean_x):  # all batches alike: nothing to tell a from b by
            return mean_y, 0.0
        b = min(max(covariance / variance, 0.0), mean_y / mean_x)
        return max(mean_y - b * mean_x, 0.0), b
