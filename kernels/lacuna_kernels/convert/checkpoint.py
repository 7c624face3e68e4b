"""Reading the tensors that somebody trained: safetensors, torch's files without code, npz, lazylinop's JSON."""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lacuna_kernels.errors import ConversionError

Tensors = Mapping[str, Tensor]
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put the state dict, beside optimizers and counters."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, nested names joined by dots, in the order of the file.

    .safetensors, .npz and .json (what `lazylinop.butterfly.save` writes) are known by their names; anything else must
    be a file of torch.save that loads with `weights_only=True`: no code of a pickle is ever run.

    Raises ConversionError.
    """
    readers = {".safetensors": _safetensors, ".npz": _npz, ".json": _lazylinop_json}
    if not path.is_file():
        raise ConversionError(f"{path} is no file")
    tensors = readers.get(path.suffix, _torch)(path)
    if not tensors:
        raise ConversionError(f"{path} holds no tensors")
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise ConversionError(f"{path}: {name!r} is complex; only real factors can be served")
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{path} is no safetensors file: {error}") from error
    return {name: tensors[name] for name in sorted(tensors, key=_by_number)}  # the file does not keep their order


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sorts 2.weight before 10.weight."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays}
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ConversionError(f"{path} is no npz file of plain arrays: {error}") from error


def _lazylinop_json(path: Path) -> dict[str, Tensor]:
    try:
        document = json.loads(path.read_bytes())
        factors = {name: entry for name, entry in document.items() if name.startswith("factor")}
        if any("ks_values_imag" in entry for entry in factors.values()):
            raise ConversionError(f"{path} holds complex factors; only real ones can be served")
        return {f"ks_values.{name[6:]}": torch.tensor(entry["ks_values_real"]) for name, entry in factors.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path} is not what lazylinop.butterfly.save writes: {error!r}") from error


def _torch(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols and of beta states of sparse tensors
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ConversionError(
                f"{path} holds more than tensors, and code of a pickle is never run. Save torch tensors alone, such as "
                f"torch.save(model.state_dict(), ...), or safetensors. What was refused: {_refused(str(error))}"
            ) from error
        except Exception as error:  # a file that is something else fails anywhere in torch
            told = f"{type(error).__name__}: {str(error).split('. ')[0]}"
            raise ConversionError(f"{path} is no file of torch.save ({told})") from error
    return dict(_flat("", _unwrapped(loaded)))


def _refused(message: str) -> str:
    """What torch says that it refused, without its advice to load the file all the same."""
    told = [line.strip() for line in message.splitlines() if "GLOBAL" in line or "Unsupported" in line]
    return (told[0].split(". ")[0] if told else message.splitlines()[0].split(". ")[0]).removeprefix(
        "WeightsUnpickler error: "
    )


def _unwrapped(loaded: object) -> object:
    while isinstance(loaded, Mapping) and not any(isinstance(value, Tensor) for value in loaded.values()):
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    return loaded


def _flat(prefix: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dicts and lists."""
    if isinstance(value, Tensor):
        yield prefix or "tensor", value.detach()
    elif isinstance(value, Mapping | list | tuple):
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, entry in entries:
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), entry)
