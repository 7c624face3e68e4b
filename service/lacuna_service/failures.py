"""What a client hears when a request failed on the device."""

import logging

from lacuna_kernels import CapacityExceeded, DeviceOutOfMemory, InputError
from lacuna_service.errors import BadRequest, Internal, OutOfMemory, ServiceError, TooLarge

log = logging.getLogger(__name__)


def as_service_error(error: Exception, model: str) -> ServiceError:
    """Return the error by whose fault it is; what is ours is logged whole and told in general."""
    if isinstance(error, InputError):
        return BadRequest(str(error))
    if isinstance(error, CapacityExceeded):
        return TooLarge(str(error))
    if out_of_memory(error):
        return OutOfMemory(f"model {model!r} has no memory for this request, even alone", retry_after_s=1.0)
    log.error("model %r failed on a request", model, exc_info=error)
    return Internal(f"model {model!r} failed on this request ({type(error).__name__}); the server's log says more")


def out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch might still fit."""
    return isinstance(error, (DeviceOutOfMemory, MemoryError))
