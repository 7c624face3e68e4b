"""Reading the tensors that somebody trained: safetensors, torch's files without code, npz, lazylinop's JSON."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lacuna_kernels.errors import ConversionError

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put the state dict, beside optimizers and counters."""
MOST_ENTRIES = 100_000
"""Tensors, dicts and lists that a file may hold; one of a few bytes can hold itself, or ten of what holds ten."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, nested names joined by dots, in the order of the file.

    .safetensors, .npz and .json (what `lazylinop.butterfly.save` writes) are known by their names; anything else must
    be a file of torch.save that loads with `weights_only=True`: no code of a pickle is ever run.

    Raises ConversionError.
    """
    readers = {".safetensors": _safetensors, ".npz": _npz, ".json": _lazylinop_json}
    if not path.is_file():
        raise ConversionError(f"{path} is no file; a checkpoint is .safetensors, .npz, .json or a file of torch.save")
    tensors = readers.get(path.suffix.lower(), _torch)(path)
    if not tensors:
        raise ConversionError(f"{path} holds no tensors")
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{path} is no safetensors file: {error}") from error
    return {name: tensors[name] for name in sorted(tensors, key=_by_number)}  # the file does not keep their order


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sorts 2.weight before 10.weight."""
    parts = re.split(r"([0-9]+)", name)  # every other part is a number
    return [(len(part) if index % 2 else 0, part) for index, part in enumerate(parts)]


def _npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays}
    except (ValueError, TypeError, OSError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise ConversionError(f"{path} is no npz file of plain arrays: {error}") from error


def _lazylinop_json(path: Path) -> dict[str, Tensor]:
    try:
        document = from_json(path.read_bytes())  # unlike json.loads, it bounds the depth by itself
        factors = {name: entry for name, entry in document.items() if name.startswith("factor")}
        if any("ks_values_imag" in entry for entry in factors.values()):
            raise ConversionError(f"{path} holds complex factors; only real ones can be served")
        values = {name: np.array(entry["ks_values_real"], np.float64) for name, entry in factors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ConversionError(f"{path} is not what lazylinop.butterfly.save writes: {error!r}") from error
    return {f"ks_values.{name[6:]}": torch.from_numpy(factor) for name, factor in values.items()}


def _torch(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols and of beta states of sparse tensors
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch's advice to load the file all the same is not passed on
            more = re.search(r"GLOBAL (\S+)", str(error))
            what = f"holds more than tensors, {more[1]}" if more else "is a pickle, or another file, not of torch.save"
            raise ConversionError(
                f"{path} {what}; code of a pickle is never run. Save torch tensors alone, such as "
                "torch.save(model.state_dict(), ...), or safetensors"
            ) from error
        except Exception as error:  # a file that is something else fails anywhere in torch
            told = f"{type(error).__name__}: {str(error).split('. ')[0]}"
            raise ConversionError(f"{path} is no file of torch.save ({told})") from error
    return _flat(path, _unwrapped(loaded))


def _unwrapped(loaded: object) -> object:
    for _ in WRAPPERS:
        if isinstance(loaded, Mapping) and not any(isinstance(value, Tensor) for value in loaded.values()):
            loaded = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
    return loaded


def _flat(path: Path, loaded: object) -> dict[str, Tensor]:
    """Every tensor in nested dicts and lists."""
    tensors: dict[str, Tensor] = {}
    waiting = [("", loaded)]
    for _ in range(MOST_ENTRIES):
        if not waiting:
            return tensors
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            tensors[name or "tensor"] = value.detach()
        elif isinstance(value, Mapping | list | tuple):
            entries = list(value.items() if isinstance(value, Mapping) else enumerate(value))
            waiting += [
                (f"{name}.{key}" if name else str(key), entry)
                for key, entry in reversed(entries)
                if isinstance(entry, Tensor | Mapping | list | tuple)
            ]
    raise ConversionError(f"{path} holds more than {MOST_ENTRIES} tensors, dicts and lists, or itself")
