"""What every benchmark needs."""

import sys

from lacuna_kernels import Batch, DeviceError, Value
from lacuna_kernels.backend import check_gpu


def need_gpu() -> None:
    """End the program with one line, which says what is missing, unless there is a GPU that can be used."""
    try:
        check_gpu()
    except DeviceError as error:
        sys.exit(str(error))


def pinned(batch: Batch) -> Batch:
    """The same batch in page-locked memory, from which a GPU reads it by itself."""
    return {name: Value(value.data.pin_memory(), value.offsets) for name, value in batch.items()}
