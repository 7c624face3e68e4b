"""How one model is served: `serving.toml` in its version folder."""

import tomllib
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lacuna_kernels import Graph, Precision

MAX_COST = 2**31 - 1
DEFAULT_ROWS = 256
DEFAULT_POINTS = 2**20
FIRST_PLAN_POINTS = 2**17

Cost = Annotated[int, Field(ge=1, le=MAX_COST)]


class ServingConfig(BaseModel):
    """Limits and choices of one model. A cost counts points if an input is a cloud (or clouds, if more), else rows.

    precision            of every node that does not ask for another
    max_batch_cost       the largest batch, and so the largest request; 256 rows or 2^20 points by default
    first_plan_cost      points that the first plan has room for, 2^17 by default; plans for rows grow from one
    max_delay_ms         longest wait for company while other work runs; there is none on an idle device
    queue_limit_requests, queue_limit_cost
                         what may wait; more is refused at once. 16 batches by default
    deadline_ms          from arrival to answer; a request may ask for less
    devices              indexes of the GPUs to run on, or all; without meaning on a CPU
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    precision: Precision = Precision.FP32
    max_batch_cost: Cost = DEFAULT_ROWS
    first_plan_cost: Cost = DEFAULT_ROWS
    max_delay_ms: Annotated[float, Field(ge=0, le=60_000)] = 2.0
    queue_limit_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    queue_limit_cost: Annotated[int, Field(ge=1)] = 16 * DEFAULT_ROWS
    deadline_ms: Annotated[float, Field(gt=0, le=86_400_000)] = 30_000.0
    devices: Literal["all"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = "all"

    @model_validator(mode="after")
    def _check_costs(self) -> Self:
        if self.first_plan_cost > self.max_batch_cost:
            raise ValueError(f"first_plan_cost {self.first_plan_cost} is above max_batch_cost {self.max_batch_cost}")
        if self.queue_limit_cost < self.max_batch_cost:
            raise ValueError(f"queue_limit_cost {self.queue_limit_cost} is below max_batch_cost {self.max_batch_cost}")
        return self


def parse_config(text: str, graph: Graph) -> ServingConfig:
    """Read a `serving.toml`, which may be empty; raises ValueError naming the field."""
    document = tomllib.loads(text)
    largest = document.setdefault("max_batch_cost", DEFAULT_POINTS if is_ragged(graph) else DEFAULT_ROWS)
    if isinstance(largest, int):
        document.setdefault("first_plan_cost", min(largest, FIRST_PLAN_POINTS) if is_ragged(graph) else largest)
        document.setdefault("queue_limit_cost", 16 * largest)
    try:
        return ServingConfig.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from error


def plan_costs(config: ServingConfig, graph: Graph) -> list[int]:
    """The batches that plans may be made for, smallest first: each twice the one before, up to the largest."""
    costs = [config.first_plan_cost if is_ragged(graph) else 1]
    while costs[-1] < config.max_batch_cost:
        costs.append(min(2 * costs[-1], config.max_batch_cost))
    return costs


def is_ragged(graph: Graph) -> bool:
    """Whether an input is a cloud or a graph, so that a cost counts points, or edges if there are more."""
    return any(kind.axis.ragged for kind in graph.input_value_types.values())
