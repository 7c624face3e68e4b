"""What was measured on one kind of GPU: data that overrides the predictions, written by `lacuna tune`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from fcntl import LOCK_EX, flock
from math import inf
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.errors import DeviceError
from lacuna_kernels.graph import Precision


class Objective(StrEnum):
    """What the best way has least of."""

    LATENCY = "latency"
    ENERGY = "energy"


Count = Annotated[int, Field(gt=0)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Measurement(BaseModel):
    """One launch of one way: device time, and energy where it was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    seconds: Amount
    joules: Amount | None = None


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
    with _told(path, "read"):
        if not path.is_file():
            return Table()
        try:
            return Table().with_entries(_File.model_validate_json(path.read_bytes()).entries)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            advice = "delete it, or run `lacuna tune`, which begins a new one"
            raise DeviceError(f"{path} is not a table of measurements: {advice} ({where}: {first['msg']})") from error


def set_aside(folder: Path, gpu: str) -> Path | None:
    """Rename a file that is no table, so that one can be begun; returns what it is now, None if there was no such file.

    Raises DeviceError.
    """
    path = table_path(folder, gpu)
    with _told(path, "renamed"), _locked(path):
        try:
            if path.is_file():
                _File.model_validate_json(path.read_bytes())
        except ValidationError:
            return path.replace(path.with_suffix(".damaged"))
    return None


def add_to_table(folder: Path, gpu: str, entries: Sequence[Entry]) -> Path:
    """Add entries to the table of a kind of GPU or replace them, one process at a time; returns where the table lies.

    It is written beside the old one and then in its place. Raises DeviceError.
    """
    path = table_path(folder, gpu)
    new = path.with_suffix(".new")
    with _told(path, "written"), _locked(path):
        kept = read_table(folder, gpu).with_entries(entries).entries.values()
        new.write_text(_File(format=1, gpu=gpu, entries=list(kept)).model_dump_json(indent=1) + "\n")
        new.replace(path)
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from the file, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as lock:
        flock(lock, LOCK_EX)
        yield


@contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    """Raise DeviceError for what the file system says."""
    try:
        yield
    except OSError as error:
        raise DeviceError(f"{path} cannot be {what}: {error}") from error
