"""What every benchmark needs."""

import sys

from lacuna_kernels import DeviceError
from lacuna_kernels.backend import check_gpu


def need_gpu() -> None:
    """End the program with one line, which says what is missing, unless there is a GPU that can be used."""
    try:
        check_gpu()
    except DeviceError as error:
        sys.exit(str(error))
