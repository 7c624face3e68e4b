"""The file of what was measured on one kind of GPU: data that overrides rules and predictions, by `lacuna tune`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lacuna_kernels.cuda.kronecker.table import Entry, Table
from lacuna_kernels.cuda.tile_table import TileEntry, TileTable
from lacuna_kernels.errors import DeviceError


@dataclass(frozen=True, slots=True)
class Tuned:
    """What plans choose kernels by, where it says something: of Kronecker-sparse factors and of sparse convolutions."""

    factors: Table = field(default_factory=Table)
    tiles: TileTable = field(default_factory=TileTable)

    def with_entries(self, entries: Sequence[Entry | TileEntry]) -> "Tuned":
        """The same with some entries added or replaced."""
        factors = [entry for entry in entries if isinstance(entry, Entry)]
        tiles = [entry for entry in entries if isinstance(entry, TileEntry)]
        return Tuned(self.factors.with_entries(factors), self.tiles.with_entries(tiles))


class _File(BaseModel):
    """What a table's file holds; one of before there were convolutions in it is one without any."""

    model_config = ConfigDict(extra="forbid")
    format: Literal[1]
    gpu: str
    entries: list[Entry]
    convolutions: list[TileEntry] = []

    @property
    def tuned(self) -> Tuned:
        """The same to choose by."""
        return Tuned().with_entries([*self.entries, *self.convolutions])


def table_path(folder: Path, gpu: str) -> Path:
    """Where the table of a kind of GPU lies, by its name."""
    return folder / "tuned" / f"{gpu.replace(' ', '-').replace('/', '-')}.json"


def read_table(folder: Path, gpu: str) -> Tuned:
    """Read the table of a kind of GPU, empty if there is none; raises DeviceError if the file is not one."""
    path = table_path(folder, gpu)
    with _told(path, "read"):
        if not path.is_file():
            return Tuned()
        try:
            return _File.model_validate_json(path.read_bytes()).tuned
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


def add_to_table(folder: Path, gpu: str, entries: Sequence[Entry | TileEntry]) -> Path:
    """Add entries to the table of a kind of GPU or replace them, one process at a time; returns where the table lies.

    It is written beside the old one and then in its place. Raises DeviceError.
    """
    path = table_path(folder, gpu)
    new = path.with_suffix(".new")
    with _told(path, "written"), _locked(path):
        kept = read_table(folder, gpu).with_entries(entries)
        factors, tiles = list(kept.factors.entries.values()), list(kept.tiles.entries.values())
        file = _File(format=1, gpu=gpu, entries=factors, convolutions=tiles)
        new.write_text(file.model_dump_json(indent=1) + "\n")
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
