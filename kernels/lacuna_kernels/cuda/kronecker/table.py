"""What was measured on one kind of GPU: data that overrides the predictions, written by `lacuna tune`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.errors import DeviceError
from lacuna_kernels.graph import Precision


class Objective(StrEnum):
    """What the best way has least of."""

    LATENCY = "latency"
    ENERGY = "energy"


class Measurement(BaseModel):
    """One launch of one way: device time, and energy where it was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    seconds: float
    joules: float | None = None


class Entry(BaseModel):
    """The ways that were measured for neighbouring factors at about so many rows, by name.

    patterns  [a, b, c, d] of each factor, in order of application
    rows      a power of two
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    patterns: tuple[tuple[int, int, int, int], ...]
    precision: Precision
    layout: Layout
    rows: int
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
        if entry.objective is Objective.LATENCY:
            return found.seconds
        return inf if found.joules is None else found.joules / WATTS

    def with_entries(self, entries: Sequence[Entry]) -> "Table":
        """The same with some entries added or replaced."""
        added = {(e.patterns, e.precision, e.layout, e.rows): e for e in entries}
        return Table({**self.entries, **added})


def key_of(problems: Sequence[Problem]) -> Key:
    """What an entry for neighbouring factors is found by."""
    first = problems[0]
    return tuple(p.pattern.values for p in problems), first.precision, first.layout, class_of(first.rows)


def class_of(rows: int) -> int:
    """The power of two that stands for so many rows: the next one up."""
    return 1 << max(0, rows - 1).bit_length()


class _File(BaseModel):
    """What a table's file holds."""

    model_config = ConfigDict(extra="forbid")
    format: Literal[1]
    gpu: str
    entries: list[Entry]


def table_path(folder: Path, gpu: str) -> Path:
    """Where the table of a kind of GPU lies, by its name."""
    return folder / "tuned" / f"{gpu.replace(' ', '-').replace('/', '-')}.json"


def read_table(folder: Path, gpu: str) -> Table:
    """Read the table of a kind of GPU, empty if there is none; raises DeviceError if the file is not one."""
    path = table_path(folder, gpu)
    if not path.is_file():
        return Table()
    try:
        return Table().with_entries(_File.model_validate_json(path.read_bytes()).entries)
    except (OSError, ValidationError) as error:
        raise DeviceError(f"{path} is not a table of measurements: {error}") from error


def write_table(folder: Path, gpu: str, table: Table) -> Path:
    """Write the table of a kind of GPU, beside the old one and then in its place; returns where. Raises DeviceError."""
    path = table_path(folder, gpu)
    new = path.with_suffix(".new")
    text = _File(format=1, gpu=gpu, entries=list(table.entries.values())).model_dump_json(indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text + "\n")
        new.replace(path)
    except OSError as error:
        raise DeviceError(f"{path} cannot be written: {error}") from error
    return path
