"""What was measured of Kronecker-sparse factors on one kind of GPU: data that overrides the predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.measurement import Count, Measurement, Objective, class_of
from lacuna_kernels.graph import Precision


class Entry(BaseModel):
    """The ways that were measured for neighbouring factors at about so many rows, by name.

    patterns  [a, b, c, d] of each factor, in order of application
    rows      a power of two
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    patterns: Annotated[tuple[tuple[Count, Count, Count, Count], ...], Field(min_length=1)]
    precision: Precision
    layout: Layout
    rows: Count
    objective: Objective
    ways: dict[str, Measurement]

    @classmethod
    def of(cls, problems: Sequence[Problem], objective: Objective, ways: dict[str, Measurement]) -> "Entry":
        """The entry for the problems of neighbouring factors."""
        patterns, precision, layout, rows = key_of(problems)
        return cls(patterns=patterns, precision=precision, layout=layout, rows=rows, objective=objective, ways=ways)


WATTS = 500.0
"""What a GPU draws at work, about: so joules stand beside predictions, which are in seconds."""

Key = tuple[tuple[tuple[int, int, int, int], ...], Precision, Layout, int]


@dataclass(frozen=True, slots=True)
class Table:
    """Entries by what they are about; a problem that is not there is left to the predictions."""

    entries: Mapping[Key, Entry] = field(default_factory=dict)

    def cost(self, problems: Sequence[Problem], way: str) -> float | None:
        """What the way costs, in seconds, by energy those of WATTS; None without an entry, infinity if not measured."""
        entry = self.entries.get(key_of(problems))
        if entry is None:
            return None
        found = entry.ways.get(way)
        if found is None:
            return inf
        return found.cost(entry.objective) / (WATTS if entry.objective is Objective.ENERGY else 1.0)

    def with_entries(self, entries: Sequence[Entry]) -> "Table":
        """The same with some entries added or replaced."""
        added = {(e.patterns, e.precision, e.layout, e.rows): e for e in entries}
        return Table({**self.entries, **added})


def key_of(problems: Sequence[Problem]) -> Key:
    """What an entry for neighbouring factors is found by."""
    first = problems[0]
    return tuple(p.pattern.values for p in problems), first.precision, first.layout, class_of(first.rows)
