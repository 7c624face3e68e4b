"""Raw little-endian float32 rows without a header, as KITTI and nuScenes store scans."""

import numpy as np
from numpy.typing import NDArray

from lacuna_service.codecs.columns import Ask, check_points, select_positional
from lacuna_service.errors import BadRequest

COLUMNS_LIMIT = 1024


def read(body: memoryview, ask: Ask) -> NDArray[np.float32]:
    """Read rows of `ask.columns_in_bin` columns, or of the model's own columns.

    When that is the model's number of columns the result is a view of the body, without a copy.
    """
    columns = len(ask.wanted) if ask.columns_in_bin is None else ask.columns_in_bin
    if not 3 <= columns <= COLUMNS_LIMIT:
        raise BadRequest(f"a .bin has 3 to {COLUMNS_LIMIT} columns a point (x y z ...), not {columns}")
    points, rest = divmod(len(body), 4 * columns)
    if rest:
        raise BadRequest(
            f"a .bin of {len(body)} bytes is not a whole number of points: {columns} float32 columns take "
            f"{4 * columns} bytes a point and {rest} bytes are left over{_hint(len(body))}"
        )
    check_points(points, ask)
    return select_positional(np.frombuffer(body, "<f4").reshape(points, columns), ask)


def _hint(size: int) -> str:
    fits = [str(columns) for columns in (3, 4, 5, 6) if size % (4 * columns) == 0]
    return f"; it would be with {' or '.join(fits)} columns (?columns=)" if fits else ""
