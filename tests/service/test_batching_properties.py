"""Whatever comes in whatever order, and whatever fails or goes away: everyone else gets their own answer."""

import asyncio
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna_kernels import Batch, DeviceOutOfMemory
from lacuna_service.engine import Answer
from lacuna_service.errors import Internal, OutOfMemory
from tests.service.serving_cases import SECONDS, Stage, alone, make_engine, rows, sample, write_model

LIMIT, ROOM = 8, 5
MARK = 666.0
REQUESTS = st.lists(
    st.tuples(
        st.integers(0, LIMIT),  # rows
        st.sampled_from(["stays", "stays", "leaves", "fails"]),
        st.integers(1, 3),  # priority
        st.integers(0, 3),  # turns of the event loop before the next one comes
        st.integers(0, 2),  # batches that the device is let through before the next one comes
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_model(root, "m", toml=f"max_batch_cost = {LIMIT}\nqueue_limit_cost = 1000\nmax_delay_ms = 0\n")
    return root


def request(place: int, count: int, fate: str) -> Batch:
    batch = rows(count, seed=place)
    if fate == "fails" and count:
        batch["x"].data[0, 0] = MARK
    return batch


def fault(batch: Batch) -> Exception | None:
    if len(batch["x"].data) > ROOM:
        return DeviceOutOfMemory("full")
    return RuntimeError("guilty") if bool((batch["x"].data == MARK).any()) else None


async def serve(repository: Path, requests: list, gpu: bool) -> tuple[list, Stage]:
    """Play the requests against a device that fails large and guilty batches; return what each got."""
    stage = Stage()
    engine = make_engine(repository, stage, gpu=gpu)
    await engine.start()
    stage.costs.clear()
    stage.held, stage.fault = True, fault
    tasks, model = [], engine.get("m")
    for place, (count, fate, priority, turns, batches) in enumerate(requests):
        tasks.append(asyncio.create_task(engine.infer(model, request(place, count, fate), priority=priority)))
        for _ in range(turns):
            await asyncio.sleep(0)
        if fate == "leaves":
            tasks[-1].cancel()
        stage.let(batches)
    stage.open_gate()
    async with asyncio.timeout(SECONDS):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert sample(engine.metrics, "lacuna_queue_depth", model="m") == 0
    await engine.stop(SECONDS)
    return outcomes, stage


@settings(max_examples=40, deadline=None)
@given(requests=REQUESTS, gpu=st.booleans())
def test_everyone_gets_their_own(repository, requests, gpu):
    outcomes, stage = asyncio.run(serve(repository, requests, gpu))

    assert max(stage.costs, default=0) <= LIMIT
    for place, ((count, fate, *_), outcome) in enumerate(zip(requests, outcomes, strict=True)):
        if fate == "leaves":
            assert isinstance(outcome, (asyncio.CancelledError, Answer, Internal, OutOfMemory))
        elif count > ROOM:
            assert isinstance(outcome, OutOfMemory)
        elif fate == "fails" and count:
            assert isinstance(outcome, Internal)
        else:
            assert isinstance(outcome, Answer)
            expected = alone(repository / "m" / "1", request(place, count, fate))
            torch.testing.assert_close(outcome.values["scores"].data, expected["scores"].data)
