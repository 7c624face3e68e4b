"""Which way multiplies by a Kronecker-sparse factor: a pure function of the problem and the device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from torch import Tensor

from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker import (
    chain,
    exchange,
    exchange_halves,
    few_rows,
    halves,
    joined,
    last,
    planes,
    semi_structured,
    tf32,
    tiles,
    tma,
)
from lacuna_kernels.cuda.kronecker.cublas import Cublas
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.table import Table
from lacuna_kernels.cuda.kronecker.turned import Turned
from lacuna_kernels.cuda.kronecker.way import Alone, ChainWay, Operands, Sums, Way
from lacuna_kernels.errors import Unsupported
from lacuna_kernels.graph import Precision

INNER: tuple[Way, ...] = (
    *(way for way in tma.WAYS if way.layout is Layout.FIRST),
    *(way for way in tf32.WAYS if way.layout is Layout.FIRST),
    tiles.MMA_TILES[0],
)
"""Those for d = 1 that are worth turning rows for."""

WAYS: tuple[Way, ...] = (
    *tiles.WAYS,
    *halves.WAYS,
    *tma.WAYS,
    *few_rows.WAYS,
    *tf32.WAYS,
    *last.WAYS,
    *planes.WAYS,
    *semi_structured.WAYS,
    *exchange.WAYS,
    *exchange_halves.WAYS,
    *(Turned(way) for way in INNER),
    *(joined.Joined(way) for way in tf32.WAYS if way.layout is Layout.FIRST and way.precision is Precision.TF32),
)
"""All kernels that are chosen among."""

CUBLAS = Cublas()
"""Beside them, where the host knows the rows."""

CHAIN_WAYS: tuple[ChainWay, ...] = (*few_rows.CHAIN_WAYS, *chain.CHAIN_WAYS)
"""All that take several factors at once."""

_EVERY: tuple[Way | ChainWay, ...] = (*WAYS, *CHAIN_WAYS)
VARIANTS = tuple(dict.fromkeys(v for way in _EVERY for precision in Precision for v in way.variants(precision)))
"""All that they may ask the compiler for."""

MEASURED_NOTHING = Table()

NOMINAL_ROWS = 25_088
"""How a factor's products are added up is chosen as for so many rows, whatever their number.

By the predictions, factors of the paper's grid, batch-size-first, take as long as by a free choice for 4096 rows and
more. For 512, 64 and 1 they take 1.02, 1.07 and 1.07 times as long in fp16, 1.07, 1.21 and 1.48 times in fp32.
"""
_RELUCTANCE = 1.25
"""What sums must be faster by for many rows, for which there is no way that is made for few rows."""

_LARGEST_ENTRY = 2**30


def candidates(problem: Problem, limits: DeviceLimits, table: Table = MEASURED_NOTHING) -> list[Way]:
    """The ways that can do it, best first, never none; all kernels of them add up alike.

    Best is what was measured best, or else what is predicted to be fastest. How they add up depends on pattern,
    precision and device alone, so that a row's sums have the same bits whatever the number of rows; but matrices at
    odd addresses may be left to ways that add up otherwise. Where the host knows the rows, as for no network, cuBLAS
    may be a way, whose sums are its own. Raises Unsupported for entries that the kernels cannot count to.
    """
    if max(problem.pattern.values) >= _LARGEST_ENTRY:
        raise Unsupported(f"{problem.pattern}: on a GPU entries must be under {_LARGEST_ENTRY}")
    sums, fits = sums_of(problem, limits), [way for way in WAYS if way.fits(problem, limits)]
    alike = [way for way in fits if way.sums(problem) is sums]
    found = [*(alike or fits), *([CUBLAS] if CUBLAS.fits(problem, limits) else [])]
    return sorted(found, key=lambda way: _cost(table, way.name, [problem], way.seconds(problem, limits)))


def _cost(table: Table, name: str, problems: Sequence[Problem], predicted_seconds: float) -> tuple[float, float]:
    """What ways are ordered by: what was measured, then what is predicted."""
    measured = table.cost(problems, name)
    return (predicted_seconds if measured is None else measured), predicted_seconds


def sums_of(problem: Problem, limits: DeviceLimits) -> Sums:
    """How the products are added up: as the fastest way for NOMINAL_ROWS does, by a margin if few rows lose by it."""
    nominal = replace(problem, rows=NOMINAL_ROWS, aligned=True)
    fits = [way for way in WAYS if way.fits(nominal, limits)]

    def cost(way: Way) -> float:
        reluctance = _RELUCTANCE if way.sums(nominal) is Sums.SEMI_STRUCTURED else 1.0
        return reluctance * way.seconds(nominal, limits)

    return min(fits, key=cost).sums(nominal)


@dataclass(frozen=True, slots=True)
class Stage:
    """One launch of a chain.

    first     index in the chain of the first of its factors
    problems  of its factors
    """

    way: ChainWay
    first: int
    problems: tuple[Problem, ...]
    limits: DeviceLimits

    def __str__(self) -> str:
        patterns = " ".join(str(problem.pattern.values) for problem in self.problems)
        return f"{patterns} {self.last.precision}, {self.last.rows} rows"

    @property
    def last(self) -> Problem:
        """The problem of its last factor."""
        return self.problems[-1]

    @property
    def seconds(self) -> float:
        """A prediction."""
        return self.way.seconds(self.problems, self.limits)

    @property
    def scratch_bytes(self) -> int:
        """Device memory that a launch may write for itself."""
        return self.way.scratch_bytes(self.problems)

    def pack(self, factors: Sequence[Tensor]) -> Tensor:
        """Pack the values of its factors, of all the chain's."""
        return self.way.pack(factors[self.first : self.first + len(self.problems)])

    def launch(self, device: Device, packed: Tensor, operands: Operands) -> None:
        """Enqueue."""
        self.way.launch(device, self.problems, packed, operands)


def stages(problems: Sequence[Problem], limits: DeviceLimits, table: Table = MEASURED_NOTHING) -> list[Stage]:
    """The launches for a chain of factors, in order of application, that cost least together."""
    best: list[tuple[float, list[Stage]]] = [(0.0, [])]
    for end in range(1, len(problems) + 1):
        single = Alone(candidates(problems[end - 1], limits, table)[0])
        options = [Stage(single, end - 1, (problems[end - 1],), limits)]
        options += [stage for start in range(end - 1) for stage in fused(problems, start, end, limits)]
        routes = [(best[s.first][0] + cost_of(table, s), [*best[s.first][1], s]) for s in options]
        best.append(min(routes, key=lambda route: route[0]))
    return best[-1][1]


def cost_of(table: Table, stage: Stage) -> float:
    """What was measured, else the prediction; a factor alone is never out of the question."""
    cost, predicted = _cost(table, stage.way.name, stage.problems, stage.seconds)
    return predicted if cost == inf and len(stage.problems) == 1 else cost


def fused(problems: Sequence[Problem], start: int, end: int, limits: DeviceLimits) -> list[Stage]:
    """The ways to take the factors from start to end at once, adding up as single factors would."""
    mine = tuple(problems[start:end])
    return [
        Stage(way, start, mine, limits)
        for way in CHAIN_WAYS
        if way.fits(mine, limits) and all(way.sums(problem) is sums_of(problem, limits) for problem in mine)
    ]
