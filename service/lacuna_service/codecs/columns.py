"""From a file's named fields to a model's columns: which names mean the same, and in which units.

Names are compared without case and without CloudCompare's prefix `scalar_`; then these mean the same:

| column | also called |
|---|---|
| intensity | i, reflectivity, reflectance, remission |
| ring | line, laser_id |
| time | t, timestamp |
| red, green, blue | r g b, diffuse_red ... |

Units: coordinates are metres. Of `intensity`, `red`, `green` and `blue`, whole numbers are divided by the largest value
of their type (a uint8 by 255, a uint16 by 65535) and floats are taken as they are, whatever their range; every other
column is taken as it is. Non-finite values pass through: one check for all formats, elsewhere, decides about them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_service.errors import BadRequest, TooLarge

Fields = dict[str, NDArray[Any]]
"""A file's fields by name, each one-dimensional and as long as the cloud."""

ALIASES = {
    "i": "intensity",
    "reflectivity": "intensity",
    "reflectance": "intensity",
    "remission": "intensity",
    "line": "ring",
    "laser_id": "ring",
    "t": "time",
    "timestamp": "time",
    **{alias: colour for colour in ("red", "green", "blue") for alias in (colour[0], f"diffuse_{colour}")},
}
COORDINATES = ("x", "y", "z")
FRACTIONS = ("intensity", "red", "green", "blue")

FAR_M = 2.0**17
"""From here on float32 keeps steps of 1.6 cm and more, as coarse as the voxels of a fine network."""

SHOWN = 100
"""Longest piece of a client's text that an error repeats."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is wanted of a file: the model's columns in order, and at most how many points."""

    wanted: tuple[str, ...]
    limit_points: int
    columns_in_bin: int | None = None


def clip(text: str) -> str:
    """A client's text, quoted, escaped and short enough for an error."""
    return ascii(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def check_points(points: int, ask: Ask) -> None:
    """Raise TooLarge for a cloud above the limit; called before anything of that size is made."""
    if points > ask.limit_points:
        raise TooLarge(f"the cloud has {points} points, the limit is {ask.limit_points}")


def select(fields: Fields, ask: Ask) -> NDArray[np.float32]:
    """The wanted columns of the fields, float32 [n, columns].

    Raises BadRequest if one is missing, or if float32 cannot hold a coordinate to the centimetre.
    """
    sources = [_find(name, fields, ask) for name in ask.wanted]
    out = np.empty((len(sources[0]), len(sources)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 is infinite, and refused as such
        for column, (name, values) in enumerate(zip(ask.wanted, sources, strict=True)):
            out[:, column] = _in_units(_canonical(name), values)
    return out


def select_positional(rows: NDArray[Any], ask: Ask) -> NDArray[np.float32]:
    """The wanted columns of unnamed ones, rows [n, c] of floats; the rows themselves if they are the answer.

    As many columns as the model has are the model's, exactly as `infer` takes them. Otherwise 3 are x y z, 4 are
    x y z intensity, and 5 are nuScenes' x y z intensity ring, whose intensity of 0..255 is brought to 0..1; of 6 and
    more only x y z are known.
    """
    columns = rows.shape[1]
    if columns == len(ask.wanted):
        if rows.dtype == np.float32 and rows.flags.c_contiguous:
            return rows
        return select(dict(zip(ask.wanted, rows.T, strict=True)), ask)
    fields = dict(zip(COORDINATES, rows.T, strict=False))
    if columns in (4, 5):
        fields["intensity"] = rows[:, 3]
    if columns == 5:
        fields["intensity"] = rows[:, 3] / 255
        fields["ring"] = rows[:, 4]
    fields |= {f"unnamed column {at}": rows[:, at] for at in range(3, columns) if columns > 5}
    return select(fields, ask)


def _canonical(name: str) -> str:
    plain = name.lower().removeprefix("scalar_")
    return ALIASES.get(plain, plain)


def _find(name: str, fields: Fields, ask: Ask) -> NDArray[Any]:
    if name in fields:
        return fields[name]
    for other, values in fields.items():
        if _canonical(other) == _canonical(name):
            return values
    found = ", ".join(clip(other)[1:-1] for other in list(fields)[:16]) + (", ..." if len(fields) > 16 else "")
    raise BadRequest(f"no column {name!r}: the model wants {', '.join(ask.wanted)}; the file has {found or 'none'}")


def _in_units(name: str, values: NDArray[Any]) -> NDArray[Any]:
    whole = values.dtype.kind in "iu"
    if name in FRACTIONS and whole:
        return values / np.iinfo(values.dtype).max
    if name in COORDINATES and (whole or values.dtype.itemsize > 4):
        values = values.astype(np.float64)
        reach = float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))
        if reach >= FAR_M:
            step = float(np.spacing(np.float32(min(reach, 1e38))))
            raise BadRequest(
                f"{name} reaches {reach:.12g} m, where float32 keeps steps of {step:.3g} m: "
                f"subtract an origin first, so that coordinates stay below {FAR_M:.0f} m"
            )
    return values
