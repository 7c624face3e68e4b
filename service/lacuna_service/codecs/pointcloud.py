"""Point-cloud files: bytes in, the model's columns out; and labelled clouds back to files.

| format | what it is | Content-Type |
|---|---|---|
| bin | raw float32 rows | application/octet-stream; none; application/x-www-form-urlencoded (curl's default) |
| pcd | Point Cloud Library: ascii, binary, binary_compressed | model/x-pcd, application/x-pcd, application/vnd.pcd |
| ply | Stanford polygons: ascii, binary | model/x-ply, model/ply, application/x-ply, application/ply |
| npy | NumPy array, by position or structured | application/x-npy, application/npy, application/vnd.npy |
| las | ASPRS LAS 1.0 to 1.4 | application/vnd.las, application/x-las |
| laz | compressed LAS, by the extra `formats` | application/vnd.laszip, application/vnd.laz, application/x-laz |

Names and units of columns: see `columns`. Every reader checks what a file declares against its length before it makes
anything of that size, and fails with a ServiceError only. A cloud of no points is a cloud. Values that are not finite
pass through: the caller decides about them, once for every format.
To add a format: a module with `read(body, ask)`, and a row in `FORMATS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lacuna_service.codecs import las, npy, pcd, ply, raw
from lacuna_service.codecs.columns import Ask
from lacuna_service.codecs.labelled import encode_npy, encode_ply
from lacuna_service.errors import BadRequest, UnsupportedMedia

__all__ = ["FORMATS", "Cloud", "decode", "encode_npy", "encode_ply", "format_of"]


@dataclass(frozen=True, slots=True)
class Cloud:
    """Points [n, columns] float32, in metres and intensity in 0..1, and the names of the columns."""

    points: NDArray[np.float32]
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Format:
    """How one kind of file is read, recognised by its first bytes, and named in a Content-Type."""

    read: Callable[[memoryview, Ask], NDArray[np.float32]]
    begins: tuple[bytes, ...]
    content_types: tuple[str, ...]


FORMATS = {
    "bin": Format(raw.read, (), ("application/octet-stream", "application/x-www-form-urlencoded", "")),
    "pcd": Format(
        pcd.read, (b"# .PCD", b"VERSION ", b"FIELDS "), ("model/x-pcd", "application/x-pcd", "application/vnd.pcd")
    ),
    "ply": Format(ply.read, (b"ply\n", b"ply\r"), ("model/x-ply", "model/ply", "application/x-ply", "application/ply")),
    "npy": Format(npy.read, (npy.MAGIC,), ("application/x-npy", "application/npy", "application/vnd.npy")),
    "las": Format(las.read, (b"LASF",), ("application/vnd.las", "application/x-las")),
    "laz": Format(las.read, (b"LASF",), ("application/vnd.laszip", "application/vnd.laz", "application/x-laz")),
}


def format_of(content_type: str | None, query_format: str | None) -> str:
    """The format that `?format=` names, else the Content-Type. Raises UnsupportedMedia for one that is not known."""
    if query_format is not None:
        if query_format.lower() not in FORMATS:
            raise UnsupportedMedia(f"?format={query_format[:60]!a} is not known; known are {', '.join(FORMATS)}")
        return query_format.lower()
    kind = (content_type or "").partition(";")[0].strip().lower()
    for name, form in FORMATS.items():
        if kind in form.content_types:
            return name
    known = ", ".join(form.content_types[0] for form in FORMATS.values())
    raise UnsupportedMedia(f"Content-Type {kind[:60]!a} is no point cloud; known are {known}; or say ?format=")


def decode(
    body: bytes | memoryview,
    format: str,  # noqa: A002 - the word of the query
    wanted: tuple[str, ...],
    *,
    columns_in_bin: int | None,
    limit_points: int,
) -> Cloud:
    """Read a file into exactly the wanted columns, in that order.

    body            the whole file; a .bin of the model's own columns is viewed, not copied
    columns_in_bin  float32 columns of a .bin, if not the model's own; other formats say it themselves
    Raises BadRequest for a malformed file or a missing column, TooLarge above `limit_points`, UnsupportedMedia for LAZ
    without its reader.
    """
    data = memoryview(body).cast("B")
    _check_beginning(data, format)
    return Cloud(FORMATS[format].read(data, Ask(wanted, limit_points, columns_in_bin)), wanted)


def _check_beginning(data: memoryview, name: str) -> None:
    """Refuse a file that begins like another format: read as .bin, it would be a cloud of nonsense."""
    start = bytes(data[:8])
    alike = [other for other, form in FORMATS.items() if start.startswith(form.begins)]
    if alike and name not in alike:
        raise BadRequest(f"the body is to be read as {name}, but begins like {alike[0]}: say ?format={alike[0]}")
