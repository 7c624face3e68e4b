"""Which way multiplies by a Kronecker-sparse factor: a pure function of the problem and the device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker import last, tiles
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.way import Alone, ChainWay, Operands, Sums, Way
from lacuna_kernels.errors import Unsupported
from lacuna_kernels.graph import Precision

WAYS: tuple[Way, ...] = (*tiles.WAYS, *last.WAYS)
"""All there are."""

CHAIN_WAYS: tuple[ChainWay, ...] = ()
"""All that take several factors at once."""

_EVERY: tuple[Way | ChainWay, ...] = (*WAYS, *CHAIN_WAYS)
VARIANTS = tuple(dict.fromkeys(v for way in _EVERY for precision in Precision for v in way.variants(precision)))
"""All that they may ask the compiler for."""

NOMINAL_ROWS = 4096
"""How a factor's products are added up is chosen as for so many rows, whatever their number."""

_LARGEST_ENTRY = 2**30


def candidates(problem: Problem, limits: DeviceLimits) -> list[Way]:
    """The ways that can do it, best guess first, never none; all of them add up alike.

    How they add up depends on pattern, precision, layout and device alone, so that a row has the same bits whatever
    the number of rows. Raises Unsupported for entries that the kernels cannot count to.
    """
    if max(problem.pattern.values) >= _LARGEST_ENTRY:
        raise Unsupported(f"{problem.pattern}: on a GPU entries must be under {_LARGEST_ENTRY}")
    sums = sums_of(problem, limits)
    fits = [way for way in WAYS if way.fits(problem, limits) and way.sums(problem) is sums]
    return sorted(fits, key=lambda way: way.seconds(problem, limits))


def sums_of(problem: Problem, limits: DeviceLimits) -> Sums:
    """How the products are added up: as the fastest way for NOMINAL_ROWS does."""
    nominal = replace(problem, rows=NOMINAL_ROWS, aligned=True)
    fits = [way for way in WAYS if way.fits(nominal, limits)]
    return min(fits, key=lambda way: way.seconds(nominal, limits)).sums(nominal)


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
        return self.way.scratch_bytes(self.problems, self.limits)

    def pack(self, factors: Sequence[Tensor]) -> Tensor:
        """Pack the values of its factors, of all the chain's."""
        return self.way.pack(factors[self.first : self.first + len(self.problems)])

    def launch(self, device: Device, packed: Tensor, operands: Operands, scratch: Tensor) -> None:
        """Enqueue."""
        self.way.launch(device, self.problems, packed, operands, scratch)


def stages(problems: Sequence[Problem], limits: DeviceLimits) -> list[Stage]:
    """The launches for a chain of factors, in order of application, of least predicted time together."""
    best: list[list[Stage]] = [[]]
    for end in range(1, len(problems) + 1):
        single = Alone(candidates(problems[end - 1], limits)[0])
        options = [Stage(single, end - 1, (problems[end - 1],), limits)]
        options += [stage for start in range(end - 1) for stage in _fused(problems, start, end, limits)]
        routes = [[*best[stage.first], stage] for stage in options]
        best.append(min(routes, key=lambda route: sum(stage.seconds for stage in route)))
    return best[-1]


def _fused(problems: Sequence[Problem], start: int, end: int, limits: DeviceLimits) -> list[Stage]:
    """The ways to take the factors from start to end at once, adding up as single factors would."""
    mine = tuple(problems[start:end])
    return [
        Stage(way, start, mine, limits)
        for way in CHAIN_WAYS
        if way.fits(mine, limits) and all(way.sums(problem) is sums_of(problem, limits) for problem in mine)
    ]
