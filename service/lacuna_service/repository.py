"""The model repository: folders `<name>/<version>/` with `model.json`, `model.safetensors` and `serving.toml`.

It is only read. A folder that cannot be served is reported by name with the reason, and never touches the others.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lacuna_kernels import Graph, Model, ModelError, load_model
from lacuna_service.config import ServingConfig, parse_config

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_FILES = ("model.json", "model.safetensors", "serving.toml")
MAX_CONFIG_BYTES = 2**16


class BrokenModel(Exception):
    """A model folder cannot be served; the message says why."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """What one version folder holds, read and checked."""

    model: Model
    config: ServingConfig


class Repository:
    """One folder of models, read only, from which nothing leads out."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self) -> None:
        """Raise NotADirectoryError if there is no such folder."""
        if not self._root.is_dir():
            raise NotADirectoryError(f"the model repository {str(self._root)!r} is not a folder")

    def names(self) -> list[str]:
        """Return the names of all models, broken ones too, sorted; hidden folders and files do not count.

        Names may be anything that a file system takes; bytes that are no text come escaped, so that they can be told.
        """
        return sorted(path.name.encode(errors="backslashreplace").decode() for path in _folders(self._root))

    def holds(self, name: str) -> bool:
        """Whether there is a folder of that name, which must be safe to ask for."""
        return NAME.fullmatch(name) is not None and (self._root / name).is_dir()

    def versions(self, name: str) -> list[int]:
        """Return the versions of a model, oldest first; other folders beside them do not count.

        Raises BrokenModel if the name is unsafe, leads out of the repository, or has no version.
        """
        folder = self._folder(name)
        versions = sorted(int(path.name) for path in _folders(folder) if VERSION.fullmatch(path.name))
        if not versions:
            raise BrokenModel(f"{name!r} has no version: it needs a folder named 1, 2, ... with model.json in it")
        return versions

    def read(self, name: str, version: int) -> StoredModel:
        """Read and check one version whole; raises BrokenModel with the reason."""
        folder = self._inside(self._folder(name) / str(version))
        for file in _FILES:
            self._inside(folder / file)
        try:
            model = _unmapped(load_model(folder))
            return StoredModel(model, _read_config(folder / "serving.toml", model.graph))
        except ModelError as error:
            raise BrokenModel(str(error)) from error
        except OSError as error:
            raise BrokenModel(f"cannot be read: {error.strerror or error}") from error

    def _folder(self, name: str) -> Path:
        if NAME.fullmatch(name) is None:
            raise BrokenModel("a model's name has 1 to 128 letters, digits, '_', '.' and '-', and starts with no mark")
        folder = self._inside(self._root / name)
        if not folder.is_dir():
            raise BrokenModel(f"{name!r} is not in the repository")
        return folder

    def _inside(self, path: Path) -> Path:
        """Return the path as it is; raises BrokenModel if links lead it out of the repository, or in circles."""
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:
            raise BrokenModel(f"{path.name!r} is a link that leads nowhere") from error
        if not real.is_relative_to(self._root.resolve()):
            raise BrokenModel(f"{path.name!r} is a link that leads out of the repository")
        return path


def _folders(parent: Path) -> Iterator[Path]:
    """Visible folders in a folder; links that lead nowhere too, so that they are not overlooked."""
    try:
        for path in parent.iterdir():
            if not path.name.startswith(".") and (path.is_dir() or (path.is_symlink() and not path.exists())):
                yield path
    except OSError as error:
        raise BrokenModel(f"{parent.name!r} cannot be listed: {error.strerror or error}") from error


def _unmapped(model: Model) -> Model:
    """Copy the weights into memory: those of a mapped file would change, or crash, when it is overwritten."""
    return Model(model.graph, {name: weight.clone() for name, weight in model.weights.items()})


def _read_config(path: Path, graph: Graph) -> ServingConfig:
    if not path.exists():
        return parse_config("", graph)
    if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
        raise BrokenModel(f"serving.toml must be a file of at most {MAX_CONFIG_BYTES} bytes")
    try:
        return parse_config(path.read_text(encoding="utf-8"), graph)
    except ValueError as error:
        raise BrokenModel(f"serving.toml: {error}") from error
