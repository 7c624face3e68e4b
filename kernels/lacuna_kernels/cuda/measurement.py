"""What measuring a kernel gives, for all that `lacuna tune` measures."""

from enum import StrEnum
from math import inf
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Objective(StrEnum):
    """What the best kernel has least of."""

    LATENCY = "latency"
    ENERGY = "energy"


Count = Annotated[int, Field(gt=0)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Measurement(BaseModel):
    """One launch of one kernel: device time, and energy where it was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    seconds: Amount
    joules: Amount | None = None

    def cost(self, objective: Objective) -> float:
        """What it takes of what there should be least of: seconds or joules; infinity if they were not measured."""
        if objective is Objective.LATENCY:
            return self.seconds
        return inf if self.joules is None else self.joules


def class_of(rows: int) -> int:
    """The power of two that stands for so many rows: the next one up."""
    return 1 << max(0, rows - 1).bit_length()
