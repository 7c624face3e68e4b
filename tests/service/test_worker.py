"""The thread that owns a device."""

import asyncio
import threading

import pytest
import torch

from lacuna_kernels import CpuBackend, DeviceError, Options, load_model
from lacuna_service.jobs import Job
from lacuna_service.tickets import Ticket
from lacuna_service.worker import Worker
from tests.service.serving_cases import SECONDS, Stage, StagedBackend, alone, rows, write_model

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def model(tmp_path):
    return load_model(write_model(tmp_path, "m"))


def ticket(seed: int = 0) -> Ticket:
    return Ticket(rows(1, seed), 1, 1, 0.0, 1, asyncio.get_running_loop().create_future())


async def run(worker: Worker, program, *tickets: Ticket) -> Job:
    done: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
    worker.put(Job(program, rows(), list(tickets), done.set_result), 0.0)
    async with asyncio.timeout(SECONDS):
        return await done


async def test_one_thread_opens_runs_and_closes(model):
    stage = Stage()
    worker = Worker("test", lambda: StagedBackend(stage))
    backend = await worker.start()
    program = backend.compile(model.graph, model.weights, Options())

    await worker.warm_up(program, rows())
    await run(worker, program, ticket())
    await worker.close(program)
    await worker.stop()

    assert len(stage.threads) == 1
    assert threading.get_ident() not in stage.threads
    assert stage.device_closed
    assert not any(thread.name == "lacuna-test" for thread in threading.enumerate())


async def test_a_device_that_cannot_be_opened_says_so_and_leaves_no_thread():
    def fail() -> CpuBackend:
        raise DeviceError("no such device")

    worker = Worker("broken", fail)

    with pytest.raises(DeviceError, match="no such device"):
        await worker.start()
    worker._thread.join(SECONDS)

    assert not any(thread.name == "lacuna-broken" for thread in threading.enumerate())


async def test_a_cpu_computes_with_the_threads_it_was_given(model):
    before = torch.get_num_threads()
    worker = Worker("cpu", CpuBackend, cpu_threads=3)
    await worker.start()

    assert await worker._ask(torch.get_num_threads) == 3
    assert torch.get_num_threads() == before
    await worker.stop()


async def test_a_gpu_gets_the_next_batch_while_one_computes(model):
    stage = Stage()
    worker = Worker("gpu", lambda: StagedBackend(stage, "GPU-0"))
    program = (await worker.start()).compile(model.graph, model.weights, Options())
    stage.held = True

    first = asyncio.create_task(run(worker, program, ticket(1)))
    await stage.seen()
    second = asyncio.create_task(run(worker, program, ticket(2)))
    await stage.seen()  # submitted although the first is not done

    assert not first.done()
    stage.let(2)
    assert (await first).runs == (await second).runs == 1
    await worker.stop()


async def test_a_batch_is_finished_before_its_program_is_closed(model):
    stage = Stage()
    worker = Worker("gpu", lambda: StagedBackend(stage, "GPU-0"))
    program = (await worker.start()).compile(model.graph, model.weights, Options())
    stage.held = True
    batch = asyncio.create_task(run(worker, program, ticket()))
    await stage.seen()

    closing = asyncio.create_task(worker.close(program))
    await asyncio.sleep(0)
    assert not stage.closed
    stage.let()
    job = await batch
    await closing

    assert not isinstance(job.outcomes[0], Exception)
    assert stage.closed == [1]
    await worker.stop()


async def test_a_batch_that_takes_long_does_not_hold_up_the_next(model):
    stage = Stage()
    worker = Worker("gpu", lambda: StagedBackend(stage, "GPU-0"))
    program = (await worker.start()).compile(model.graph, model.weights, Options())
    stage.held = True
    slow = asyncio.create_task(run(worker, program, ticket(1)))
    await stage.seen()
    stage.held = False

    quick = await run(worker, program, ticket(2))

    assert quick.runs == 1 and not slow.done()
    stage.let()
    await slow
    await worker.stop()


async def test_a_batch_that_fails_late_is_run_again_before_its_program_is_closed(model):
    stage = Stage()
    worker = Worker("gpu", lambda: StagedBackend(stage, "GPU-0"))
    program = (await worker.start()).compile(model.graph, model.weights, Options())
    stage.held = True
    stage.late_fault = lambda batch: RuntimeError("late") if len(batch["x"].data) > 1 else None
    failing = asyncio.create_task(run(worker, program, ticket(1), ticket(2)))
    await stage.seen()
    closing = asyncio.create_task(worker.close(program))
    stage.open_gate()
    job = await failing
    await closing

    assert stage.costs == [2, 1, 1] and stage.closed == [1]
    assert not any(isinstance(outcome, Exception) for outcome in job.outcomes)
    assert len(stage.threads) == 1  # only the owner submits
    await worker.stop()


async def test_work_that_nobody_waits_for_is_not_started(model):
    stage = Stage()
    worker = Worker("cpu", lambda: StagedBackend(stage))
    program = (await worker.start()).compile(model.graph, model.weights, Options())
    gone, here = ticket(1), ticket(2)
    gone.dropped = True

    job = await run(worker, program, gone, here)
    nothing = await run(worker, program, gone)

    assert job.tickets == [here]
    assert nothing.tickets == [] and nothing.runs == 0
    assert stage.costs == [1]
    await worker.stop()


async def test_a_program_that_fails_with_anything_does_not_end_the_thread(tmp_path, model):
    stage = Stage(fault=lambda batch: ZeroDivisionError("oops"))
    worker = Worker("cpu", lambda: StagedBackend(stage))
    program = (await worker.start()).compile(model.graph, model.weights, Options())

    failed = await run(worker, program, ticket())
    stage.fault = lambda batch: None
    worked = await run(worker, program, ticket(3))

    assert isinstance(failed.outcomes[0], ZeroDivisionError)
    expected = alone(tmp_path / "m" / "1", rows(1, 3))
    assert torch.equal(worked.outcomes[0]["scores"].data, expected["scores"].data)
    await worker.stop()
