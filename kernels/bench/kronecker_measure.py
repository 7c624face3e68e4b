"""Checks and times every way on one problem."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.kronecker_grid import key, roof_ms
from bench.kronecker_lazylinop import lazylinop
from bench.kronecker_ways import TORCH_WAYS, Multiply, Operands, Skipped, ours
from bench.timing import copies_of, milliseconds
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker.choose import candidates
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.tuning import contenders
from lacuna_kernels.errors import KernelsError
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern, ks_matmul

OURS = "ours"
LARGEST_ERROR = {Precision.FP32: 5e-7, Precision.TF32: 5e-4, Precision.FP16: 5e-4, Precision.BF16: 4e-3}
"""Relative L2 error that ours may have."""
_WRONG = 0.1
"""Relative L2 error that is no rounding, not even of sums in 16 bits."""
_SAMPLE = 64
_HOPELESS = 1.5  # times the fastest existing way before it: one run is enough to say so
_CLOSE = 1.25  # times: clocks that change from one measurement to the next may decide
_TURNS = 6  # of each of those that are close
_RESERVED_BYTES = 60e9


@dataclass(slots=True)
class Record:
    """What one problem gave; a line of a results file.

    ways  by name: ms and error, or why there is none
    """

    problem: Problem
    ways: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        p = self.problem
        return {
            "key": key(p),
            "pattern": p.pattern.values,
            "rows": p.rows,
            "precision": p.precision.value,
            "layout": p.layout.value,
            "roof_ms": round(roof_ms(p), 6),
            "ways": self.ways,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Record":
        """Back from plain data."""
        precision, layout = Precision(data["precision"]), Layout(data["layout"])
        return cls(Problem(KSPattern(*data["pattern"]), data["rows"], precision, layout), data["ways"])

    @property
    def ours_ms(self) -> float | None:
        """Milliseconds of ours, if it was measured."""
        ms = self.ways.get(OURS, {}).get("ms")
        return None if ms is None else float(ms)

    @property
    def mine(self) -> dict[str, dict[str, Any]]:
        """Ours: what the rules choose, and the others that were measured."""
        return {name: way for name, way in self.ways.items() if name.startswith(OURS)}

    @property
    def tuned_ms(self) -> float | None:
        """Milliseconds of the fastest of ours: of what the rules choose, if no other is faster and right."""
        right = [float(way["ms"]) for way in self.mine.values() if way.get("error", inf) < _WRONG]
        return None if self.ours_ms is None else min([self.ours_ms, *right])

    @property
    def others(self) -> dict[str, float]:
        """Milliseconds of the existing ways that give the right answer, by name."""
        ways = {name: way for name, way in self.ways.items() if name not in self.mine}
        return {name: float(way["ms"]) for name, way in ways.items() if way.get("error", inf) < _WRONG}

    @property
    def best(self) -> tuple[str, float] | None:
        """The fastest of the existing ways that give the right answer."""
        return min(self.others.items(), key=lambda other: other[1], default=None)

    @property
    def close(self) -> list[str]:
        """Ours first and all ways that are close to it; none if the fastest existing way is not."""
        if self.ours_ms is None or self.best is None or not _are_close(self.ours_ms, self.best[1]):
            return []
        timed = {name: float(way["ms"]) for name, way in self.mine.items() if "ms" in way} | self.others
        return [name for name, ms in timed.items() if _are_close(self.ours_ms, ms)]


def _are_close(ms: float, other: float) -> bool:
    return max(ms, other) < _CLOSE * min(ms, other)


class Judge:
    """Compares y with float64: on a sample of rows, and all rows in one sum.

    A row that is wrong shows in the sum of all rows, of which float64 needs one product; relative errors of the two are
    alike for random inputs.
    """

    def __init__(self, operands: Operands) -> None:
        self.layout, n = operands.problem.layout, operands.problem.rows
        device = operands.xs[0].device
        inner = torch.randint(n, (min(n, _SAMPLE),), device=device)
        self.sample = torch.cat([inner, torch.tensor([0, n - 1], device=device)])
        values = operands.values[0].double()
        self.expected = [ks_matmul(part, values) for part in self._parts(operands.xs[0])]

    def _parts(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        if self.layout is Layout.FIRST:
            return matrix[self.sample].double(), matrix.sum(0, dtype=torch.float64)[None]
        return matrix[:, self.sample].T.double(), matrix.sum(1, dtype=torch.float64)[None]

    def error(self, y: Tensor) -> float:
        """Relative L2 error of y [n, a*b*d] or [a*b*d, n], the larger of the two; not a number if part is unwritten."""
        found = self._parts(y)
        errors = torch.stack([(f - e).norm() / e.norm() for f, e in zip(found, self.expected, strict=True)])
        return float(errors.max())


def ways_of(
    device: Device, problem: Problem, with_contenders: bool = False
) -> dict[str, Callable[[Operands], Multiply]]:
    """All ways by name, ours first: what the rules choose, and the others that `lacuna tune` would measure."""
    chosen = candidates(problem, device.limits)[0]
    found: dict[str, Callable[[Operands], Multiply]] = {OURS: partial(ours, device)}
    if with_contenders:
        for way in contenders(replace(problem, counted=True), device.limits):
            if way != chosen:
                found[f"{OURS}: {way.name}"] = partial(ours, device, way=way)
    return found | TORCH_WAYS | {"lazylinop": partial(lazylinop, device)}


def measure(device: Device, problem: Problem, wanted: Collection[str] = (), with_contenders: bool = False) -> Record:
    """Check and time the wanted ways, or all; what one of them cannot do is said in its place."""
    if torch.cuda.memory_reserved() > _RESERVED_BYTES:
        torch.cuda.empty_cache()
    torch.backends.cuda.matmul.allow_tf32 = problem.precision is Precision.TF32
    operands = Operands.random(problem, copies_of(problem.bytes))
    judge, record, ways = Judge(operands), Record(problem), ways_of(device, problem, with_contenders)
    for name, prepare in ways.items():
        if not wanted or name.partition(":")[0] in wanted:
            best = inf if name.startswith(OURS) or record.best is None else record.best[1]
            record.ways[name] = _measure(prepare, operands, judge, _HOPELESS * best)
    for name, ms in _in_turns({name: ways[name] for name in record.close}, operands).items():
        record.ways[name]["ms"] = _rounded(ms)
    if OURS in record.ways:
        record.ways[OURS]["way"] = candidates(problem, device.limits)[0].name
    return record


def _in_turns(contest: dict[str, Callable[[Operands], Multiply]], operands: Operands) -> dict[str, float]:
    """Median milliseconds of each, timed in turns, back and forth; none if one of them fails beside the others."""
    try:
        prepared = {name: prepare(operands) for name, prepare in contest.items()}
        times: dict[str, list[float]] = {name: [] for name in contest}
        for turn in range(_TURNS):
            for name in list(contest)[:: -1 if turn % 2 else 1]:
                times[name].append(milliseconds(prepared[name], len(operands.xs)))
    except (KernelsError, RuntimeError):  # no memory for all, most likely
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return {}
    return {name: median(each) for name, each in times.items()}


def _rounded(ms: float) -> float:
    return float(f"{ms:.5g}")


def _measure(
    prepare: Callable[[Operands], Multiply], operands: Operands, judge: Judge, hopeless_ms: float
) -> dict[str, Any]:
    try:
        multiply = prepare(operands)
        operands.ys[0].fill_(torch.nan)
        error = judge.error(multiply(0))
        ms = milliseconds(multiply, len(operands.xs), hopeless_ms=hopeless_ms)
    except Skipped as reason:
        return {"skipped": str(reason)}
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"skipped": "no memory is left for it"}
    except (KernelsError, RuntimeError) as failure:
        torch.cuda.synchronize()  # raises again if the device is lost for this process
        return {"skipped": f"failed: {failure}"[:200]}
    return {"ms": _rounded(ms), "error": float(f"{error:.3g}")}
