"""Many requests at once: each gets what it would get alone, and they do travel together."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from numpy.typing import NDArray

from lacuna_kernels import Model, load_model, walk
from lacuna_service.signature import Signature
from tests.cases import assert_close, tolerance
from tests.service import networks
from tests.service.http_app import json_input
from tests.system.running import Running

REQUESTS, WRONG = 200, 20
NEWEST = {"tiny-kronecker": "2", "tiny-minkunet": "1"}


def request(index: int) -> tuple[str, str, NDArray[np.float32]]:
    """Model, input and data of one request: rows of several counts and clouds of several sizes, empty ones too."""
    if index % 4:
        return "tiny-kronecker", "x", networks.rows(1 + index % 7, seed=index)
    return "tiny-minkunet", "POINTS", networks.cloud((0, 1, 20, 100, 200)[index // 4 % 5], seed=index)


async def ask(client: httpx.AsyncClient, index: int) -> dict[str, Any]:
    model, name, array = request(index)
    document = {"id": str(index), "inputs": [json_input(name, array)]}
    response = await client.post(f"/v2/models/{model}/infer", json=document)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def ask_wrongly(client: httpx.AsyncClient, index: int) -> int:
    """A request of the wrong width, or with a point that is too far away: the status of its answer."""
    if index % 2:
        model, name, array = "tiny-kronecker", "x", networks.rows(2, seed=index)[:, 1:]
    else:
        model, name, array = "tiny-minkunet", "POINTS", networks.cloud(20, seed=index)
        array[3, 1] = 1e30
    return (await client.post(f"/v2/models/{model}/infer", json={"inputs": [json_input(name, array)]})).status_code


async def ask_all(url: str) -> tuple[list[dict[str, Any]], list[int]]:
    """Good requests with wrong ones among them: the good ones' answers, and the wrong ones' statuses."""
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        wrong = [asyncio.create_task(ask_wrongly(client, index)) for index in range(WRONG // 2)]
        good = [asyncio.create_task(ask(client, index)) for index in range(REQUESTS)]
        wrong += [asyncio.create_task(ask_wrongly(client, index)) for index in range(WRONG // 2)]
        return list(await asyncio.gather(*good)), list(await asyncio.gather(*wrong))


def alone(model: Model, index: int) -> dict[str, torch.Tensor]:
    """What a request gets when it is computed by itself."""
    _, name, array = request(index)
    signature = Signature(model.graph)
    return signature.tensors(walk(model.graph, model.weights, signature.values({name: networks.tensor(array)})))


def batches(url: str) -> tuple[float, float]:
    """Requests that ran, and batches, over all models, from the metrics."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    requests, count = (
        sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"lacuna_batch_requests_{what}{{"))
        for what in ("sum", "count")
    )
    return requests, count


def test_mixed_requests_at_once_get_what_each_gets_alone(server: Running, repository: Path) -> None:
    before = batches(server.url)
    answers, refusals = asyncio.run(ask_all(server.url))
    requests, count = (now - then for now, then in zip(batches(server.url), before, strict=True))
    models = {name: load_model(repository / name / version) for name, version in NEWEST.items()}
    for index, answer in enumerate(answers):
        assert answer["id"] == str(index)
        expected = alone(models[answer["model_name"]], index)
        assert {output["name"] for output in answer["outputs"]} == set(expected)
        for output in answer["outputs"]:
            wanted = expected[output["name"]]
            found = torch.tensor(output["data"], dtype=wanted.dtype).reshape(output["shape"])
            assert_close(found, wanted, tolerance(terms=64, layers=20))
    assert refusals == [400] * WRONG
    assert requests == REQUESTS
    assert requests / count > 1.5
