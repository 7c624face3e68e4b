"""What is alike in ways by teams of blocks: ks_matmul_exchange.cu and its sibling for fp32."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.teams import STAGE_K, Teams
from lacuna_kernels.cuda.kronecker.way import Operands, Sums, arguments
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern


@dataclass(frozen=True, slots=True)
class ByTeams(ABC):
    """All but the kernel and how it wants the values."""

    teams: Teams

    @property
    @abstractmethod
    def name(self) -> str:
        """How the teams are composed."""

    @property
    @abstractmethod
    def packing(self) -> str:
        """The order of the values follows from which block has which l, and the columns of a product."""

    @abstractmethod
    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """At most one."""

    @abstractmethod
    def sums(self, problem: Problem) -> Sums:
        """How it adds up."""

    @abstractmethod
    def pack(self, values: Tensor) -> Tensor:
        """Put the values in the order that the kernel reads."""

    def operands(self, packed: Tensor, pattern: KSPattern) -> tuple[Tensor, ...]:
        """What the kernel is told of the values."""
        return (packed,)

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """What the teams fit, in its precisions."""
        return bool(self.variants(problem.precision)) and self.teams.fits(problem, limits)

    def seconds(self, problem: Problem, limits: DeviceLimits) -> float:
        """The teams'."""
        return self.teams.seconds(problem, limits)

    def scratch_bytes(self, problem: Problem) -> int:
        """None."""
        return 0

    def launch(self, device: Device, problem: Problem, packed: Tensor, operands: Operands) -> None:
        """Enqueue; see Way."""
        if not problem.rows:
            return
        teams, pattern = self.teams, problem.pattern
        schedule = teams.schedule(pattern, problem.rows, device.limits.multiprocessors)
        assert schedule is not None
        device.kernel(*self.variants(problem.precision))(
            (schedule.teams * teams.blocks, 1, 1),
            (teams.threads, 1, 1),
            teams.boxes.map(operands.x, pattern, pattern.c, teams.rows // teams.blocks, STAGE_K),
            *self.operands(packed, pattern),
            *arguments(problem, operands),
            schedule.stages.raw,
            schedule.stages.x,
            schedule.stages.w,
            schedule.stages.y,
            schedule.together,
        )
