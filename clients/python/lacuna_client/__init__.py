"""Client of the Lacuna inference service: tensors and point-cloud files over HTTP.

    from lacuna_client import Client

    with Client("http://localhost:8000") as client:
        result = client.infer("digits-kronecker", {"pixels": pixels})
        labels = client.pointcloud("lidar-minkunet", "scan.bin").labels

Generated scans to try it with are in `lacuna_client.simulate`.
"""

from lacuna_client.client import Client
from lacuna_client.clouds import CloudLabels
from lacuna_client.errors import (
    BadRequest,
    ConnectionFailed,
    DeadlineExceeded,
    LacunaError,
    NotFound,
    ProtocolError,
    ServerError,
    TimedOut,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
)
from lacuna_client.wire import InferResult, Tensor

__all__ = [
    "BadRequest",
    "Client",
    "CloudLabels",
    "ConnectionFailed",
    "DeadlineExceeded",
    "InferResult",
    "LacunaError",
    "NotFound",
    "ProtocolError",
    "ServerError",
    "Tensor",
    "TimedOut",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UnsupportedMedia",
]
