"""Models come and go: loaded, unloaded and loaded again, under traffic too."""

import asyncio
import gc
import shutil
from itertools import count

import pytest
import torch

from lacuna_service.engine import IndexEntry
from lacuna_service.errors import BadRequest, NotFound, NotReady
from tests.service.serving_cases import SECONDS, Stage, expected, rows, running, sample, scores, states, write_model

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def test_unload_and_load(tmp_path):
    folder = write_model(tmp_path, "m")
    async with running(tmp_path) as engine:
        await engine.unload("m")
        assert engine.index() == [IndexEntry("m", "1", "UNAVAILABLE", "not loaded")]
        assert sample(engine.metrics, "lacuna_model_ready", model="m", version="1") == 0
        with pytest.raises(NotReady):
            engine.get("m")

        await engine.load("m")
        torch.testing.assert_close(await scores(engine), expected(folder))
        assert sample(engine.metrics, "lacuna_model_ready", model="m", version="1") == 1


async def test_unknown_models_can_be_neither_loaded_nor_unloaded(tmp_path):
    write_model(tmp_path, "m")
    async with running(tmp_path) as engine:
        for name in ("ghost", "../m", ""):
            with pytest.raises(NotFound):
                await engine.load(name)
            with pytest.raises(NotFound):
                await engine.unload(name)


async def test_models_change_only_under_explicit_control(tmp_path):
    write_model(tmp_path, "m")
    async with running(tmp_path, control="none") as engine:
        for change in (engine.load, engine.unload):
            with pytest.raises(BadRequest, match="explicit"):
                await change("m")
        assert engine.get("m").ready


async def test_a_reload_takes_new_weights_new_versions_and_forgets_old_ones(tmp_path):
    write_model(tmp_path, "m", 1)
    async with running(tmp_path) as engine:
        write_model(tmp_path, "m", 2, seed=2)
        write_model(tmp_path, "m", 3, seed=3)
        shutil.rmtree(tmp_path / "m" / "1")
        await engine.load("m")

        assert states(engine) == {("m", "2"): "READY", ("m", "3"): "READY"}
        torch.testing.assert_close(await scores(engine), expected(tmp_path / "m" / "3"))
        assert sample(engine.metrics, "lacuna_model_ready", model="m", version="1") == 0


async def test_a_reload_forgets_what_was_wrong_before(tmp_path):
    (tmp_path / "m").mkdir()
    async with running(tmp_path) as engine:
        write_model(tmp_path, "m", 1)
        (write_model(tmp_path, "m", 2) / "model.json").unlink()
        with pytest.raises(BadRequest, match="version 2"):
            await engine.load("m")
        assert states(engine) == {("m", "1"): "READY", ("m", "2"): "UNAVAILABLE"}

        shutil.rmtree(tmp_path / "m" / "2")
        await engine.load("m")
        assert engine.index() == [IndexEntry("m", "1", "READY", "")]


async def test_a_reload_that_fails_leaves_what_answers(tmp_path):
    folder = write_model(tmp_path, "m")
    before = expected(folder)
    async with running(tmp_path) as engine:
        (folder / "model.json").write_text("{")
        with pytest.raises(BadRequest, match="not JSON"):
            await engine.load("m")

        (entry,) = engine.index()
        assert entry.state == "READY" and "not JSON" in entry.reason
        torch.testing.assert_close(await scores(engine), before)

        write_model(tmp_path, "m", seed=5)
        await engine.load("m")
        assert engine.index() == [IndexEntry("m", "1", "READY", "")]
        torch.testing.assert_close(await scores(engine), expected(folder))


async def test_overwriting_a_served_models_files_harms_nobody(tmp_path):
    folder = write_model(tmp_path, "m")
    before = expected(folder)
    async with running(tmp_path) as engine:
        (folder / "model.safetensors").write_bytes(b"")  # in place, as cp does
        torch.testing.assert_close(await scores(engine), before)


async def test_reloads_under_traffic_lose_no_request(tmp_path):
    folders = [write_model(tmp_path / f"store{seed}", "m", seed=seed) for seed in range(2)]
    allowed = [expected(folder) for folder in folders]
    shutil.copytree(folders[0], tmp_path / "models" / "m" / "1")
    async with running(tmp_path / "models") as engine:
        stop, answered = asyncio.Event(), count()

        async def client() -> None:
            while not stop.is_set():
                result = await scores(engine)
                assert any(torch.allclose(result, one, atol=1e-5) for one in allowed)
                next(answered)

        clients = [asyncio.create_task(client()) for _ in range(8)]
        for turn in range(6):
            shutil.copytree(folders[(turn + 1) % 2], tmp_path / "models" / "m" / "1", dirs_exist_ok=True)
            await engine.load("m")
        stop.set()
        await asyncio.gather(*clients)  # raises what any request raised

        assert next(answered) > 8
        torch.testing.assert_close(await scores(engine), allowed[0])


async def test_whoever_holds_a_model_may_use_it_after_it_was_unloaded(tmp_path):
    folder = write_model(tmp_path, "m")
    async with running(tmp_path, stage := Stage()) as engine:
        held = engine.get("m")  # as a route does while a body is still coming in
        await engine.unload("m")
        await asyncio.sleep(0)
        assert stage.closed == []
        answer = await engine.infer(held, rows())
        torch.testing.assert_close(answer.values["scores"].data, expected(folder))

        del held
        gc.collect()
        await asyncio.to_thread(stage.program_closed.wait, SECONDS)
        assert stage.closed == [1]


async def test_changes_of_one_model_at_once_are_made_one_after_the_other(tmp_path):
    write_model(tmp_path, "m")
    async with running(tmp_path, stage := Stage()) as engine:
        for last in (engine.unload, engine.load):
            await asyncio.gather(engine.load("m"), engine.unload("m"), engine.load("m"), last("m"))
            assert states(engine) == {("m", "1"): "READY" if last == engine.load else "UNAVAILABLE"}
        torch.testing.assert_close(await scores(engine, "m"), expected(tmp_path / "m" / "1"))
    assert sorted(stage.closed) == list(range(1, stage.programs + 1))  # every program once


async def test_unload_waits_for_the_requests_that_came_before(tmp_path):
    write_model(tmp_path, "m", toml="max_batch_cost = 1")
    async with running(tmp_path, stage := Stage()) as engine:
        await stage.seen()
        stage.held = True
        model = engine.get("m")
        requests = [asyncio.create_task(engine.infer(model, rows())) for _ in range(3)]
        await stage.seen()
        unloading = asyncio.create_task(engine.unload("m"))
        await asyncio.sleep(0.01)

        assert not unloading.done()
        assert states(engine) == {("m", "1"): "UNLOADING"}
        stage.open_gate()
        assert len(await asyncio.gather(*requests)) == 3
        await unloading
        assert states(engine) == {("m", "1"): "UNAVAILABLE"}


async def test_statistics_outlive_a_reload(tmp_path):
    write_model(tmp_path, "m")
    async with running(tmp_path) as engine:
        await scores(engine)
        await engine.load("m")
        await scores(engine)
        assert engine.get("m").statistics.execution_count == 2
