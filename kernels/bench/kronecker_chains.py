"""Chains of factors against one dense matrix and against existing ways factor by factor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from bench.kronecker_grid import BYTES_PER_SECOND, FLOP_PER_SECOND, ROWS, roof_ms
from bench.kronecker_ways import Operands, bmm, dense_matrix, strided
from bench.timing import copies_of, milliseconds
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker import way as kronecker
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker_linear import Chain
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern, ks_matmul

CHAINS = {
    "gpt2-medium down": (KSPattern(64, 64, 64, 1), KSPattern(1, 64, 256, 16)),
    "gpt2-medium down, fewer values": (KSPattern(16, 64, 256, 1), KSPattern(1, 64, 64, 16)),
    "gpt2-medium up": (KSPattern(1, 64, 64, 16), KSPattern(16, 256, 64, 1)),
    "monarch 4096": (KSPattern(64, 64, 64, 1), KSPattern(1, 64, 64, 64)),
    "vit-s/16 up": (KSPattern(6, 64, 64, 1), KSPattern(1, 768, 192, 2)),
    "vit-s/16 attention": (KSPattern(2, 48, 192, 1), KSPattern(1, 192, 48, 2)),
}
"""In order of application."""
_SAMPLE = 256


@dataclass(frozen=True)
class ChainOperands:
    """Copies of the matrices of a chain: stations[k] go into factor k, stations[k + 1] come out of it."""

    problems: tuple[Problem, ...]
    stations: list[list[Tensor]]
    factors: list[list[Tensor]]

    @property
    def copies(self) -> int:
        """How many there are."""
        return len(self.stations[0])

    @classmethod
    def random(cls, problems: tuple[Problem, ...], copies: int, device: str = "cuda") -> "ChainOperands":
        """Normal inputs; values scaled so that every station is normal."""
        steps = [Operands.random(problem, copies, device) for problem in problems]
        return cls(problems, [steps[0].xs, *(step.ys for step in steps)], [step.values for step in steps])


def key(name: str, precision: Precision, rows: int) -> str:
    """One line that tells a case from all others."""
    return f"{name} {rows} {precision}"


def chain_problems(name: str, precision: Precision, rows: int = ROWS) -> tuple[Problem, ...]:
    """The problems of a chain's factors, batch-size-first."""
    return tuple(Problem(pattern, rows, precision) for pattern in CHAINS[name])


def fused_roof_ms(problems: Sequence[Problem]) -> float:
    """The least time of one kernel for all: arithmetic, or x, values and y once through memory."""
    first, last, precision = problems[0], problems[-1], problems[0].precision
    elements = first.rows * (first.pattern.width_in + last.pattern.width_out)
    elements += sum(problem.pattern.nonzeros for problem in problems)
    flop = sum(problem.flop for problem in problems)
    return 1e3 * max(flop / FLOP_PER_SECOND[precision], elements * first.dtype.itemsize / BYTES_PER_SECOND)


def ours(device: Device, o: ChainOperands) -> tuple[Callable[[int], Tensor], str]:
    """Ours as a network runs it, and the names of its stages."""
    factors = [values[0] for values in o.factors]
    chain = Chain.of(device.limits, o.problems, lambda stage: stage.pack(factors))
    between = [torch.empty(size, dtype=o.problems[0].dtype, device="cuda") for size in chain.between]
    scratch = torch.empty(max(chain.scratch_bytes, 1), dtype=torch.uint8, device="cuda")

    def multiply(copy: int) -> Tensor:
        y = o.stations[-1][copy]
        operands = kronecker.Operands(o.stations[0][copy], y, scratch=scratch)
        chain.launch(device, operands, (between[0], between[1]))
        return y

    return multiply, " + ".join(stage.way.name for stage in chain.stages)


def factor_by_factor(o: ChainOperands) -> Callable[[int], Tensor]:
    """torch.bmm a factor: on views where d is 1, else between permutations."""
    steps = []
    for k, problem in enumerate(o.problems):
        operands = Operands(problem, o.stations[k], o.factors[k], o.stations[k + 1])
        steps.append((strided if problem.pattern.d == 1 else bmm)(operands))

    def multiply(copy: int) -> Tensor:
        for step in steps:
            y = step(copy)
        return y

    return multiply


def dense(o: ChainOperands) -> Callable[[int], Tensor]:
    """torch.mm by the product of the factors."""
    dtype = o.problems[0].dtype
    product = reduce(
        lambda x, values: dense_matrix(values[0].float()) @ x, o.factors[1:], dense_matrix(o.factors[0][0].float())
    )
    weight = product.to(dtype)
    return lambda copy: torch.mm(o.stations[0][copy], weight.T, out=o.stations[-1][copy])


def measure(device: Device, name: str, precision: Precision, rows: int = ROWS) -> dict[str, Any]:
    """Check and time; a record without its part."""
    torch.backends.cuda.matmul.allow_tf32 = precision is Precision.TF32
    problems = chain_problems(name, precision, rows)
    o = ChainOperands.random(problems, copies_of(sum(problem.bytes for problem in problems)))
    o = replace(o, factors=[[values[0]] * o.copies for values in o.factors])
    few = slice(0, min(rows, _SAMPLE))
    expected = reduce(lambda x, values: ks_matmul(x, values[0].double()), o.factors, o.stations[0][0][few].double())
    mine, stages = ours(device, o)
    ways: dict[str, dict[str, Any]] = {}
    for way, multiply in (("ours", mine), ("factor by factor", factor_by_factor(o)), ("dense", dense(o))):
        o.stations[-1][0].fill_(torch.nan)
        y = multiply(0)
        error = float((y[few].double() - expected).norm() / expected.norm()) if bool(y.sum().isfinite()) else torch.nan
        ways[way] = {"ms": float(f"{milliseconds(multiply, o.copies):.5g}"), "error": float(f"{error:.3g}")}
    ways["ours"]["way"] = stages
    return {
        "key": key(name, precision, rows),
        "chain": name,
        "rows": rows,
        "precision": precision.value,
        "fused_roof_ms": round(fused_roof_ms(problems), 6),
        "roof_ms": round(sum(map(roof_ms, problems)), 6),
        "ways": ways,
    }
