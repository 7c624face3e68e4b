"""Batching: when batches start, how large they are, and what is refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import torch

from lacuna_kernels import CapacityExceeded, DeviceError, DeviceOutOfMemory, InputError
from lacuna_service.engine import Engine, ServedModel
from lacuna_service.errors import (
    BadRequest,
    DeadlineExceeded,
    Internal,
    NotReady,
    OutOfMemory,
    QueueFull,
    ServiceError,
    TooLarge,
)
from lacuna_service.forecast import ENOUGH
from tests.service.serving_cases import (
    CLOUDS,
    SECONDS,
    Stage,
    alone,
    clouds,
    make_engine,
    rows,
    sample,
    write_model,
)

pytestmark = pytest.mark.anyio
HOUR = "max_delay_ms = 60_000\ndeadline_ms = 3_600_000\n"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@asynccontextmanager
async def serving(repository, stage: Stage, *, gpu: bool = False) -> AsyncIterator[tuple[Engine, ServedModel]]:
    """An engine with model `m` on a staged device; warm-ups are forgotten."""
    engine = make_engine(repository, stage, gpu=gpu)
    await engine.start()
    await stage.seen()
    stage.costs.clear()
    try:
        async with asyncio.timeout(SECONDS):
            yield engine, engine.get("m")
    finally:
        stage.open_gate()
        await engine.stop(SECONDS)


def ask(engine: Engine, model: ServedModel, batch, **options) -> asyncio.Task:
    return asyncio.create_task(engine.infer(model, batch, **options))


async def turns(count: int = 5) -> None:
    """Let the event loop go round, so that all that can happen without the device has happened."""
    for _ in range(count):
        await asyncio.sleep(0)


async def error_of(task) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await task
    return caught.value


async def test_an_idle_device_starts_at_once(tmp_path):
    write_model(tmp_path, "m", toml=HOUR)
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        answer = await engine.infer(model, rows(2))  # would take a minute if it waited for company

    assert stage.costs == [2]
    assert (answer.items, answer.cost) == (2, 2)


async def test_requests_that_arrive_together_run_together(tmp_path):
    write_model(tmp_path, "m", toml=HOUR)
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        await asyncio.gather(*(engine.infer(model, rows(1, seed)) for seed in range(10)))

    assert stage.costs == [10]


async def test_requests_gather_while_the_device_works(tmp_path):
    write_model(tmp_path, "m", toml=HOUR)
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        stage.held = True
        first = ask(engine, model, rows())
        await stage.seen()
        rest = [ask(engine, model, rows(1, seed)) for seed in range(20)]
        await turns()
        assert stage.costs == [1]
        stage.let(2)
        await asyncio.gather(first, *rest)

        assert stage.costs == [1, 20]
        assert sample(engine.metrics, "lacuna_batch_requests_sum", model="m") == 21
        assert sample(engine.metrics, "lacuna_batch_requests_count", model="m") == 2


async def test_batches_are_bounded_by_cost_and_keep_the_order(tmp_path):
    write_model(tmp_path, "m", toml=HOUR + "max_batch_cost = 8")
    finished = []
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        stage.held = True
        first = ask(engine, model, rows())
        await stage.seen()
        rest = [ask(engine, model, rows(count)) for count in (3, 4, 2, 6, 8, 1)]
        for place, task in enumerate(rest):
            task.add_done_callback(lambda _, place=place: finished.append(place))
        await turns()
        stage.let(20)
        await asyncio.gather(first, *rest)

    assert stage.costs == [1, 7, 8, 8, 1]
    assert finished == [0, 1, 2, 3, 4, 5]


async def test_a_busy_gpu_waits_for_a_full_batch(tmp_path):
    write_model(tmp_path, "m", toml=HOUR + "max_batch_cost = 4")
    async with serving(tmp_path, stage := Stage(), gpu=True) as (engine, model):
        stage.held = True
        tasks = [ask(engine, model, rows())]
        await stage.seen()
        tasks += [ask(engine, model, rows()) for _ in range(3)]
        await turns()
        assert stage.costs == [1]  # three of four: not full, and an hour's delay is allowed
        tasks.append(ask(engine, model, rows()))
        await stage.seen()
        assert stage.costs == [1, 4]  # full: copied in while the first computes
        tasks += [ask(engine, model, rows()) for _ in range(4)]
        await turns()
        assert stage.costs == [1, 4]  # two are under way: no more
        stage.let(3)
        await asyncio.gather(*tasks)

    assert stage.costs == [1, 4, 4]


async def test_a_busy_gpu_takes_a_batch_whose_delay_is_over(tmp_path):
    write_model(tmp_path, "m", toml="max_delay_ms = 5\ndeadline_ms = 3_600_000")
    async with serving(tmp_path, stage := Stage(), gpu=True) as (engine, model):
        stage.held = True
        first = ask(engine, model, rows())
        await stage.seen()
        second = ask(engine, model, rows())
        await stage.seen()  # comes although the first never ends and the batch is not full
        assert not first.done()
        stage.let(2)
        await asyncio.gather(first, second)


async def test_priority_one_goes_first_and_three_last(tmp_path):
    write_model(tmp_path, "m", toml=HOUR + "max_batch_cost = 1")
    finished = []
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        stage.held = True
        tasks = [ask(engine, model, rows())]
        await stage.seen()
        for priority in (3, 0, 2, 1, 2**64):
            task = ask(engine, model, rows(), priority=priority)
            task.add_done_callback(lambda _, priority=priority: finished.append(priority))
            tasks.append(task)
        await turns()
        stage.let(10)
        await asyncio.gather(*tasks)

    assert finished == [1, 0, 2, 3, 2**64]


@pytest.mark.parametrize("kind", ["rows", "clouds"])
async def test_answers_in_a_batch_equal_those_alone(tmp_path, kind):
    folder = write_model(tmp_path, "m", document=CLOUDS if kind == "clouds" else None, toml=HOUR)
    requests = (
        [rows(1 + seed % 3, seed) for seed in range(12)]
        if kind == "rows"
        else [clouds(30, seed=1), clouds(0), clouds(1, 0, 50, seed=2), clouds(200, seed=3), clouds(7, 7, seed=4)]
    )
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        answers = await asyncio.gather(*(engine.infer(model, request) for request in requests))
        assert len(stage.costs) == 1

    for request, answer in zip(requests, answers, strict=True):
        for name, expected in alone(folder, request).items():
            value = answer.values[name]
            assert value.items == expected.items == answer.items
            torch.testing.assert_close(value.data, expected.data)
            assert value.offsets is None or torch.equal(value.offsets, expected.offsets)


def poisonous(batch) -> bool:
    return bool((batch["x"].data == 666).any())


def poison() -> dict:
    batch = rows()
    batch["x"].data[0, 0] = 666
    return batch


@pytest.mark.parametrize(
    ("fault", "error"),
    [(RuntimeError("bad value"), Internal), (InputError("no"), BadRequest), (CapacityExceeded("much"), TooLarge)],
)
async def test_only_the_guilty_of_a_failed_batch_fails(tmp_path, fault, error):
    folder = write_model(tmp_path, "m", toml=HOUR)
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        stage.fault = lambda batch: fault if poisonous(batch) else None
        good = [ask(engine, model, rows(1, seed)) for seed in range(4)]
        bad = ask(engine, model, poison())
        good += [ask(engine, model, rows(1, seed)) for seed in range(4, 6)]

        assert isinstance(await error_of(bad), error)
        for seed, task in enumerate(good):
            torch.testing.assert_close((await task).values["scores"].data, alone(folder, rows(1, seed))["scores"].data)
        assert stage.costs == [7, 1, 1, 1, 1, 1, 1, 1]
        assert model.statistics.execution_count == 6
        assert model.ready and engine.ready


async def test_what_went_wrong_inside_is_not_told_to_strangers(tmp_path, caplog):
    write_model(tmp_path, "m")
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        stage.fault = lambda batch: RuntimeError("secret path /root/x")
        error = await error_of(ask(engine, model, rows()))

    assert "secret" not in str(error)
    assert "secret path /root/x" in caplog.text


async def test_a_batch_without_memory_is_run_in_halves(tmp_path):
    folder = write_model(tmp_path, "m", toml=HOUR)
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        stage.fault = lambda batch: DeviceOutOfMemory("full") if len(batch["x"].data) > 2 else None
        answers = await asyncio.gather(*(engine.infer(model, rows(1, seed)) for seed in range(8)))

    assert stage.costs == [8, 4, 2, 2, 4, 2, 2]
    for seed, answer in enumerate(answers):
        torch.testing.assert_close(answer.values["scores"].data, alone(folder, rows(1, seed))["scores"].data)


@pytest.mark.parametrize("error", [DeviceOutOfMemory("full"), MemoryError()])
async def test_a_request_without_memory_even_alone_is_refused_and_the_rest_served(tmp_path, error):
    write_model(tmp_path, "m", toml=HOUR)
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        stage.fault = lambda batch: error if len(batch["x"].data) > 3 else None
        small, large = ask(engine, model, rows(2)), ask(engine, model, rows(5))

        refusal = await error_of(large)
        assert isinstance(refusal, OutOfMemory) and refusal.retry_after_s
        assert (await small).items == 2
        assert (await engine.infer(model, rows(3))).items == 3


async def test_a_device_failure_that_a_harmless_batch_survives_costs_only_one_request(tmp_path):
    write_model(tmp_path, "m", toml=HOUR)
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        stage.fault = lambda batch: DeviceError("launch failed") if poisonous(batch) else None
        bad, good = ask(engine, model, poison()), ask(engine, model, rows())

        assert isinstance(await error_of(bad), Internal)
        assert (await good).items == 1
        assert engine.ready


async def test_a_dead_device_takes_its_model_out_of_service(tmp_path):
    write_model(tmp_path, "m", toml=HOUR + "max_batch_cost = 1")
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        stage.held = True
        first = ask(engine, model, rows())
        await stage.seen()
        second = ask(engine, model, rows())
        await turns()
        stage.fault = lambda batch: DeviceError("illegal address")
        stage.open_gate()

        assert isinstance(await error_of(first), Internal)
        assert isinstance(await error_of(second), NotReady)
        assert not engine.ready
        (entry,) = engine.index()
        assert entry.state == "UNAVAILABLE" and "illegal address" in entry.reason
        with pytest.raises(NotReady, match="illegal address"):
            engine.get("m")


async def test_a_request_above_the_limit_is_refused_by_name(tmp_path):
    write_model(tmp_path, "m", toml="max_batch_cost = 8")
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        error = await error_of(ask(engine, model, rows(9)))
        assert isinstance(error, TooLarge)
        assert "9" in str(error) and "8" in str(error) and "'m'" in str(error)
        assert sample(engine.metrics, "lacuna_rejected_total", model="m", reason="too_large") == 1
    assert stage.costs == []


@pytest.mark.parametrize("limit", ["queue_limit_requests = 3", "max_batch_cost = 3\nqueue_limit_cost = 3"])
async def test_a_full_queue_refuses_at_once(tmp_path, limit):
    write_model(tmp_path, "m", toml=HOUR + limit)
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        stage.held = True
        tasks = [ask(engine, model, rows())]
        await stage.seen()
        tasks += [ask(engine, model, rows()) for _ in range(3)]
        await turns()
        assert sample(engine.metrics, "lacuna_queue_depth", model="m") == 3

        refused = ask(engine, model, rows())
        await turns()
        assert refused.done()
        error = await error_of(refused)
        assert isinstance(error, QueueFull) and error.retry_after_s is not None
        assert sample(engine.metrics, "lacuna_rejected_total", model="m", reason="queue_full") == 1
        stage.let(10)
        assert len(await asyncio.gather(*tasks)) == 4
        assert (await engine.infer(model, rows())).items == 1


class Timers:
    """The timers of an event loop, fired by the test instead of by the clock."""

    def __init__(self) -> None:
        self._loop, self._timers = asyncio.get_running_loop(), []

    def __getattr__(self, name):
        return getattr(self._loop, name)

    def call_later(self, delay, callback, *arguments):
        handle = asyncio.Handle(callback, arguments, self._loop)
        self._timers.append((delay, handle))
        return handle

    def pass_seconds(self, seconds: float) -> None:
        for delay, handle in self._timers:
            if delay <= seconds and not handle.cancelled():
                self._loop.call_soon(handle._run)


async def test_a_deadline_fires_while_a_long_batch_runs(tmp_path):
    write_model(tmp_path, "m")
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        timers = model.batcher._loop = Timers()
        stage.held = True
        running = ask(engine, model, rows(), timeout_s=5.0)
        await stage.seen()
        waiting, patient = ask(engine, model, rows(3), timeout_s=4.0), ask(engine, model, rows(2), timeout_s=10.0)
        await turns()
        timers.pass_seconds(6.0)

        assert "before it could run" in str(await error_of(waiting))  # the device still holds the first
        assert "while it ran" in str(await error_of(running))
        assert sample(engine.metrics, "lacuna_rejected_total", model="m", reason="deadline") == 1
        assert sample(engine.metrics, "lacuna_queue_depth", model="m") == 1
        stage.open_gate()
        assert (await patient).items == 2
    assert stage.costs == [1, 2]  # what had waited too long was never run


async def test_deadlines_need_no_help_from_the_device_nor_from_the_test(tmp_path):
    write_model(tmp_path, "m")
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        stage.held = True
        running = ask(engine, model, rows())
        await stage.seen()

        assert isinstance(await error_of(ask(engine, model, rows(), timeout_s=0.001)), DeadlineExceeded)
        assert not running.done()


async def test_the_deadline_of_the_model_holds_for_who_asks_for_none_or_for_more(tmp_path):
    write_model(tmp_path, "m", toml="deadline_ms = 10")
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        stage.held = True
        for timeout in (None, 3600.0):
            assert isinstance(await error_of(ask(engine, model, rows(), timeout_s=timeout)), DeadlineExceeded)


async def test_no_time_at_all_is_refused_at_once(tmp_path):
    write_model(tmp_path, "m")
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        assert isinstance(await error_of(ask(engine, model, rows(), timeout_s=0.0)), DeadlineExceeded)
    assert stage.costs == []


async def test_what_cannot_meet_its_deadline_is_refused_at_once_unless_nothing_is_ahead(tmp_path):
    write_model(tmp_path, "m", toml=HOUR)
    async with serving(tmp_path, stage := Stage(busy=lambda cost: 100.0)) as (engine, model):
        for _ in range(ENOUGH):
            await engine.infer(model, rows())
        await engine.infer(model, rows(), timeout_s=50.0)  # nothing ahead: the forecast may be wrong
        stage.held = True
        running = ask(engine, model, rows())
        for _ in range(ENOUGH + 2):
            await stage.seen()

        refused = ask(engine, model, rows(), timeout_s=150.0)
        patient = ask(engine, model, rows(), timeout_s=250.0)
        await turns()
        assert refused.done() and not patient.done()
        error = await error_of(refused)
        assert isinstance(error, QueueFull)
        assert 150.0 < error.retry_after_s <= 200.0
        assert sample(engine.metrics, "lacuna_rejected_total", model="m", reason="too_late") == 1
        stage.open_gate()
        await asyncio.gather(running, patient)


async def test_work_that_nobody_waits_for_is_dropped(tmp_path):
    write_model(tmp_path, "m", toml=HOUR)
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        stage.held = True
        running = ask(engine, model, rows())
        await stage.seen()
        gone = [ask(engine, model, rows(3)) for _ in range(5)]
        stays = ask(engine, model, rows(2))
        await turns()
        running.cancel()
        for task in gone:
            task.cancel()
        await asyncio.gather(running, *gone, return_exceptions=True)
        assert sample(engine.metrics, "lacuna_queue_depth", model="m") == 1
        assert sample(engine.metrics, "lacuna_rejected_total", model="m", reason="cancelled") == 5
        stage.open_gate()
        assert (await stays).items == 2

    assert stage.costs == [1, 2]


async def test_work_dropped_after_it_was_handed_over_is_not_started(tmp_path):
    write_model(tmp_path, "m", toml="max_delay_ms = 0\nmax_batch_cost = 4")
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        engine._devices.workers[0].depth = 2  # a device that computes as it submits, with a second batch in its inbox
        stage.held = True
        running = ask(engine, model, rows())
        await stage.seen()
        handed_over = ask(engine, model, rows(4))
        await turns()
        assert sample(engine.metrics, "lacuna_queue_depth", model="m") == 0
        handed_over.cancel()
        await asyncio.gather(handed_over, return_exceptions=True)
        stage.open_gate()
        await running
        await engine.infer(model, rows(2))

    assert stage.costs == [1, 2]


async def test_two_models_share_a_device_in_the_order_their_requests_came(tmp_path):
    write_model(tmp_path, "m", toml=HOUR + "max_batch_cost = 1")
    write_model(tmp_path, "other", toml=HOUR)
    async with serving(tmp_path, stage := Stage()) as (engine, model):
        await stage.seen()
        stage.costs.clear()
        stage.held = True
        tasks = [ask(engine, model, rows()) for _ in range(2)]
        await stage.seen()
        tasks += [ask(engine, engine.get("other"), rows(7))]
        await turns()
        tasks += [ask(engine, model, rows()) for _ in range(3)]
        await turns()
        stage.let(10)
        await asyncio.gather(*tasks)

    assert stage.costs == [1, 1, 7, 1, 1, 1]
