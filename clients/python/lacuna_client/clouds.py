"""Point clouds as request bodies, and the labels that come back."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_client.errors import ProtocolError

Source = str | Path | bytes | NDArray[Any]

FORMATS = ("bin", "pcd", "ply", "npy", "las", "laz")
ACCEPT = {"json": "application/json", "npy": "application/x-npy", "ply": "application/x-ply"}


@dataclass(frozen=True, slots=True, eq=False)
class CloudLabels:
    """A labelled cloud: `labels[i]` is the class of point i, an index into `classes`.

    parameters  what the server says beside, "energy_joules" for one
    """

    model_name: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Points of each class, by name; classes without points are 0."""
        found = Counter(self.labels.tolist())
        return {name: found[index] for index, name in enumerate(self.classes)}

    @classmethod
    def from_json(cls, answer: dict[str, Any]) -> CloudLabels:
        """Read the server's answer. Raises ProtocolError if it is not one."""
        try:
            labels = np.array(answer["labels"], np.int64).reshape(int(answer["points"]))
            return cls(str(answer["model_name"]), tuple(answer["classes"]), labels, answer.get("parameters", {}))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ProtocolError(f"the answer is not a labelled cloud: {error!r}") from error


def body_and_format(source: Source, form: str | None) -> tuple[bytes, str]:
    """The bytes to send and their format: a file's by its suffix, an array's own, raw bytes' as stated or "bin".

    An array [n, columns] has the model's columns in the model's order.
    Raises ValueError for a format or shape that is not known, OSError for a file that cannot be read.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 2 and source.dtype.names is None:
            raise ValueError(f"a cloud is an array [points, columns], got shape {source.shape}")
        return npy_bytes(source), "npy"
    body = source if isinstance(source, bytes) else Path(source).read_bytes()
    suffix = "bin" if isinstance(source, bytes) else Path(source).suffix.lstrip(".").lower()
    chosen = (form or suffix).lower()
    if chosen not in FORMATS:
        raise ValueError(f"format {chosen!r} is not known; known are {', '.join(FORMATS)}")
    return body, chosen


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array as the bytes of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def read_npy(body: bytes) -> NDArray[Any]:
    """The array in an .npy answer. Raises ProtocolError if it is none."""
    try:
        labels: NDArray[Any] = np.lib.format.read_array(io.BytesIO(body), allow_pickle=False)
    except ValueError as error:
        raise ProtocolError(f"the answer is not an .npy file: {error}") from error
    return labels
