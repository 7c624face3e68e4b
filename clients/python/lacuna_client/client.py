"""The client: one method for each thing that the service does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, overload
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray

from lacuna_client.clouds import ACCEPT, CloudLabels, Source, body_and_format, read_npy
from lacuna_client.errors import ConnectionFailed, NotFound, ProtocolError, ServerError, TimedOut, error_for
from lacuna_client.wire import HEADER_LENGTH, Array, InferResult, Tensor, decode_response, encode_request


class Client:
    """A connection to one server; threads may share it. A request that fails raises a member of the LacunaError
    family; what cannot be sent at all is a TypeError, ValueError or OSError.

    url        "http://host:port"; without a scheme, http
    api_key    sent as a bearer token
    timeout_s  longest wait for one answer, unless a call says otherwise
    transport  what carries the requests, if not the network
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        api_key: str | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Accept-Encoding": "identity"}  # packing floats costs more time than sending them
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        base = url if "://" in url else f"http://{url}"
        self._http = httpx.Client(base_url=base, headers=headers, timeout=timeout_s, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def is_live(self) -> bool:
        """Whether the server answers at all."""
        return self._says_yes("/v2/health/live")

    def is_ready(self, model: str | None = None, version: str | None = None) -> bool:
        """Whether the server, or one model of it, takes requests."""
        return self._says_yes("/v2/health/ready" if model is None else model_path(model, version) + "/ready")

    def server_metadata(self) -> dict[str, Any]:
        """Name, version and protocol extensions of the server."""
        return self._json_object("GET", "/v2")

    def model_metadata(self, model: str, version: str | None = None) -> dict[str, Any]:
        """A model's inputs and outputs: names, types and shapes."""
        return self._json_object("GET", model_path(model, version))

    def model_config(self, model: str, version: str | None = None) -> dict[str, Any]:
        """A model's configuration, as Triton words it."""
        return self._json_object("GET", model_path(model, version) + "/config")

    def statistics(self, model: str | None = None, version: str | None = None) -> dict[str, Any]:
        """Counts and durations of one model's requests, or of all models'."""
        path = "/v2/models/stats" if model is None else model_path(model, version) + "/stats"
        return self._json_object("GET", path)

    def index(self) -> list[dict[str, Any]]:
        """The models in the server's repository, each with name, version, state and, if unavailable, the reason."""
        rows = self._json("POST", "/v2/repository/index")
        if not isinstance(rows, list):
            raise ProtocolError(f"the index is not a list but {type(rows).__name__}")
        return rows

    def load(self, model: str) -> None:
        """Load a model, or load it again. Where the server allows it."""
        self._send("POST", f"/v2/repository/models/{quote(model, safe='')}/load")

    def unload(self, model: str) -> None:
        """Unload a model. Where the server allows it."""
        self._send("POST", f"/v2/repository/models/{quote(model, safe='')}/unload")

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array | Tensor],
        outputs: Sequence[str] | None = None,
        version: str | None = None,
        *,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        energy: bool = False,
        binary: bool = True,
        request_id: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> InferResult:
        """Send tensors through a model.

        outputs     names of the outputs wanted; all, if None
        timeout_s   how long this client waits for the answer
        deadline_s  how long the server may take before it gives up with DeadlineExceeded
        energy      ask for `result.parameters["energy_joules"]`
        binary      binary tensors (smaller, exact, needed for FP16 and BF16) or plain JSON
        """
        sent = dict(parameters or {})
        if deadline_s is not None:
            sent["timeout"] = round(deadline_s * 1e6)
        body, headers = encode_request(inputs, outputs, binary=binary, request_id=request_id, parameters=sent)
        response = self._send(
            "POST",
            model_path(model, version) + "/infer",
            content=body,
            headers=headers,
            params={"energy": "1"} if energy else {},
            timeout_s=timeout_s,
        )
        return decode_response(response.content, response.headers.get(HEADER_LENGTH))

    @overload
    def pointcloud(
        self,
        model: str,
        source: Source,
        version: str | None = ...,
        *,
        format: str | None = ...,
        accept: Literal["json"] = ...,
        columns: int | None = ...,
        timeout_s: float | None = ...,
        energy: bool = ...,
    ) -> CloudLabels: ...
    @overload
    def pointcloud(
        self,
        model: str,
        source: Source,
        version: str | None = ...,
        *,
        format: str | None = ...,
        accept: Literal["npy"],
        columns: int | None = ...,
        timeout_s: float | None = ...,
        energy: bool = ...,
    ) -> NDArray[np.integer[Any]]: ...
    @overload
    def pointcloud(
        self,
        model: str,
        source: Source,
        version: str | None = ...,
        *,
        format: str | None = ...,
        accept: Literal["ply"],
        columns: int | None = ...,
        timeout_s: float | None = ...,
        energy: bool = ...,
    ) -> bytes: ...
    def pointcloud(
        self,
        model: str,
        source: Source,
        version: str | None = None,
        *,
        format: str | None = None,  # noqa: A002 - the word of the query
        accept: Literal["json", "npy", "ply"] = "json",
        columns: int | None = None,
        timeout_s: float | None = None,
        energy: bool = False,
    ) -> CloudLabels | NDArray[np.integer[Any]] | bytes:
        """Label the points of a file (by path or bytes) or of an array [n, columns].

        format   bin, pcd, ply, npy, las or laz, if the file's suffix does not tell; bytes are taken for bin
        accept   json: a CloudLabels; npy: only the labels, as an array; ply: the bytes of a coloured PLY file
        columns  float32 columns of a .bin file, if not the model's own
        energy   ask for `parameters["energy_joules"]` of a CloudLabels
        """
        body, form = body_and_format(source, format)
        asked = {"columns": None if columns is None else str(columns), "energy": "1" if energy else None}
        response = self._send(
            "POST",
            model_path(model, version) + "/pointcloud",
            content=body,
            headers={"Content-Type": "application/octet-stream", "Accept": ACCEPT[accept]},
            params={"format": form, **{name: value for name, value in asked.items() if value is not None}},
            timeout_s=timeout_s,
        )
        if accept == "json":
            return CloudLabels.from_json(parse(response))
        return read_npy(response.content) if accept == "npy" else response.content

    def _says_yes(self, path: str) -> bool:
        try:
            self._send("GET", path)
        except (ConnectionFailed, NotFound, ServerError):
            return False
        return True

    def _json(self, method: str, path: str) -> Any:
        return parse(self._send(method, path))

    def _json_object(self, method: str, path: str) -> dict[str, Any]:
        answer = self._json(method, path)
        if not isinstance(answer, dict):
            raise ProtocolError(f"{path} answered a {type(answer).__name__}, not an object")
        return answer

    def _send(
        self,
        method: str,
        path: str,
        *,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        """One request, one answer. Raises the error that an answer other than 200 stands for."""
        timeout = httpx.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s
        try:
            response = self._http.request(
                method, path, content=content, headers=headers, params=params, timeout=timeout
            )
        except httpx.TimeoutException as error:
            raise TimedOut(f"no answer from {self._http.base_url} in time: {error}") from error
        except (httpx.TransportError, httpx.InvalidURL, httpx.DecodingError) as error:
            raise ConnectionFailed(f"cannot reach {self._http.base_url}: {error}") from error
        if response.status_code != 200:
            raise error_for(response.status_code, response.content, response.headers)
        return response


def model_path(model: str, version: str | None = None) -> str:
    """The address of a model, or of one version of it."""
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{quote(version, safe='')}"


def parse(response: httpx.Response) -> Any:
    """The JSON of an answer."""
    try:
        return response.json()
    except ValueError as error:
        raise ProtocolError(f"{response.url.path} did not answer JSON: {error}") from error
