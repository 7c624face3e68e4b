"""NVIDIA's own client, unmodified, against a real server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from lacuna_kernels import load_model, walk
from lacuna_service.signature import Signature
from tests.cases import assert_close, tolerance
from tests.service import networks
from tests.system.running import Running

ROWS, CLOUDS = "tiny-kronecker", "tiny-minkunet"


@pytest.fixture
def triton(server: Running) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.address, concurrency=4) as client:
        yield client


def given(name: str, array: NDArray[Any], *, binary: bool = True) -> InferInput:
    datatype = {"float32": "FP32", "int32": "INT32", "float64": "FP64"}[array.dtype.name]
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def expected(folder: Path, **arrays: NDArray[Any]) -> dict[str, torch.Tensor]:
    model = load_model(folder)
    signature = Signature(model.graph)
    values = signature.values({name: networks.tensor(array) for name, array in arrays.items()})
    return signature.tensors(walk(model.graph, model.weights, values))


def same(found: NDArray[Any], wanted: torch.Tensor) -> None:
    assert_close(torch.from_numpy(found.copy()), wanted, tolerance(terms=64, layers=20))


def test_server_and_models_tell_of_themselves(triton: InferenceServerClient) -> None:
    assert triton.is_server_live() and triton.is_server_ready()
    assert triton.is_model_ready(ROWS) and triton.is_model_ready(ROWS, "1") and not triton.is_model_ready(ROWS, "9")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    assert triton.get_model_metadata(ROWS)["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}]
    assert triton.get_model_config(CLOUDS)["input"][1]["optional"] is True


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_rows_in_every_mixture_of_forms(
    triton: InferenceServerClient, repository: Path, binary_in: bool, binary_out: bool | None
) -> None:
    x = networks.rows(7)
    names = ("label", "probabilities")
    asked = None if binary_out is None else [InferRequestedOutput(name, binary_data=binary_out) for name in names]
    result = triton.infer(ROWS, [given("x", x, binary=binary_in)], outputs=asked, request_id="r1", model_version="1")
    assert result.get_response()["id"] == "r1"
    for name, tensor in expected(repository / ROWS / "1", x=x).items():
        same(result.as_numpy(name), tensor)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_both_ways(triton: InferenceServerClient, repository: Path, algorithm: str) -> None:
    x = networks.rows(200)
    result = triton.infer(
        ROWS,
        [given("x", x)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    same(result.as_numpy("probabilities"), expected(repository / ROWS / "2", x=x)["probabilities"])


def test_clouds_with_offsets(triton: InferenceServerClient, repository: Path) -> None:
    points, offsets = networks.cloud(100), np.array([0, 60, 100], np.int32)
    result = triton.infer(CLOUDS, [given("POINTS", points), given("OFFSETS", offsets)])
    wanted = expected(repository / CLOUDS / "1", POINTS=points, OFFSETS=offsets)
    same(result.as_numpy("scores"), wanted["scores"])
    same(result.as_numpy("labels"), wanted["labels"])


def test_requests_at_once_each_get_their_own_answer(triton: InferenceServerClient, repository: Path) -> None:
    arrays = [networks.rows(1 + index % 3, seed=index) for index in range(40)]
    pending = [
        triton.async_infer(ROWS, [given("x", x)], priority=index % 4, timeout=20_000_000)
        for index, x in enumerate(arrays)
    ]
    for x, request in zip(arrays, pending, strict=True):
        same(request.get_result().as_numpy("probabilities"), expected(repository / ROWS / "2", x=x)["probabilities"])


def test_statistics_grow(triton: InferenceServerClient) -> None:
    def count() -> int:
        (entry,) = triton.get_inference_statistics(ROWS, "2")["model_stats"]
        return int(entry["inference_stats"]["success"]["count"])

    before = count()
    triton.infer(ROWS, [given("x", networks.rows(2))])
    assert count() == before + 1
    assert len(triton.get_inference_statistics()["model_stats"]) >= 3


def test_index_unload_and_load(triton: InferenceServerClient) -> None:
    def states() -> dict[str, str]:
        return {f"{entry['name']}/{entry['version']}": entry["state"] for entry in triton.get_model_repository_index()}

    assert states() == {f"{ROWS}/1": "READY", f"{ROWS}/2": "READY", f"{CLOUDS}/1": "READY"}
    triton.unload_model(CLOUDS)
    assert states()[f"{CLOUDS}/1"] == "UNAVAILABLE" and not triton.is_model_ready(CLOUDS)
    triton.load_model(CLOUDS)
    assert states()[f"{CLOUDS}/1"] == "READY" and triton.is_model_ready(CLOUDS)


@pytest.mark.parametrize(
    ("model", "name", "array", "status", "message"),
    [
        ("nobody", "x", networks.rows(1), "404", "does not exist"),
        (ROWS, "y", networks.rows(1), "400", "'y' is not known"),
        (ROWS, "x", networks.rows(1)[:, :3], "400", "must be"),
        (ROWS, "x", networks.rows(1).astype(np.float64), "400", "FP32"),
        (ROWS, "x", networks.rows(300), "413", "256"),
    ],
)
def test_errors_arrive_with_their_text(
    triton: InferenceServerClient, model: str, name: str, array: NDArray[Any], status: str, message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as caught:
        triton.infer(model, [given(name, array)])
    assert caught.value.status() == status
