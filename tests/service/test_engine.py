"""Models: which answers and which cannot, on which device, and how an engine starts and stops."""

import asyncio
import os

import pytest
import torch

from lacuna_kernels import DeviceError, DeviceOutOfMemory, Value
from lacuna_service.errors import BadRequest, NotFound, NotReady, OutOfMemory, TooLarge
from tests.service.serving_cases import (
    CLOUDS,
    SECONDS,
    Stage,
    StagedBackend,
    alone,
    clouds,
    expected,
    make_engine,
    rows,
    running,
    sample,
    scores,
    states,
    write_model,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def test_the_real_cpu_backend_serves_rows_and_clouds(tmp_path):
    of_rows, of_clouds = write_model(tmp_path, "rows"), write_model(tmp_path, "clouds", document=CLOUDS)
    cloud = clouds(40, 2)
    async with running(tmp_path) as engine:
        assert engine.ready
        torch.testing.assert_close(await scores(engine, "rows"), expected(of_rows))
        answer = await engine.infer(engine.get("clouds"), cloud)

        assert (answer.items, answer.cost, answer.energy_joules) == (2, 42, None)
        assert answer.queue_seconds >= 0 and answer.compute_seconds > 0
        torch.testing.assert_close(answer.values["logits"].data, alone(of_clouds, cloud)["logits"].data)
        assert (engine.get("rows").max_batch_size, engine.get("clouds").max_batch_size) == (256, 0)
    assert not engine.ready


async def test_many_mixed_requests_at_once_equal_those_alone(tmp_path):
    of_rows, of_clouds = write_model(tmp_path, "rows"), write_model(tmp_path, "clouds", document=CLOUDS)
    requests = [rows(1 + n % 4, n) if n % 2 else clouds(n, seed=n) for n in range(60)]
    async with running(tmp_path) as engine:
        models = [engine.get("rows" if n % 2 else "clouds") for n in range(60)]
        answers = await asyncio.gather(*(engine.infer(m, r) for m, r in zip(models, requests, strict=True)))

        batches = sample(engine.metrics, "lacuna_batch_requests_count", model="rows")
        assert batches is not None and batches < 30  # mean batch size above 1

    for n, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        for name, value in alone(of_rows if n % 2 else of_clouds, request).items():
            torch.testing.assert_close(answer.values[name].data, value.data)


async def test_the_newest_version_answers_by_default_and_any_by_number(tmp_path):
    folders = {version: write_model(tmp_path, "m", version, seed=version) for version in (2, 10, 9)}
    async with running(tmp_path) as engine:
        assert engine.get("m").version == engine.get("m", "").version == "10"
        for version, folder in folders.items():
            assert engine.get("m", str(version)).version == str(version)
            torch.testing.assert_close(await scores(engine, "m", str(version)), expected(folder))


@pytest.mark.parametrize(
    ("name", "version"),
    [
        *(("m", version) for version in ("2", "01", "0", "x", "-1", "9" * 400, "²", "1 ")),
        *((name, None) for name in ("other", "../m", "", "m/1", "M", "m\0", "a" * 5000, ".", "..", "ü")),
    ],
)
async def test_what_does_not_exist_is_not_found(tmp_path, name, version):
    write_model(tmp_path, "m")
    async with running(tmp_path) as engine:
        with pytest.raises(NotFound) as error:
            engine.get(name, version)
    assert len(str(error.value)) < 1000 and str(error.value).isascii() and "\0" not in str(error.value)


async def test_broken_models_are_unavailable_with_the_reason_and_the_others_serve(tmp_path):
    write_model(tmp_path, "good")
    (write_model(tmp_path, "cut") / "model.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    write_model(tmp_path, "bad name")
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkdir(bytes(tmp_path) + b"/\xff")  # noqa: PTH102  a name that is no text
    write_model(tmp_path, "mixed", 1)
    (write_model(tmp_path, "mixed", 2) / "serving.toml").write_text("nonsense = 1")
    async with running(tmp_path) as engine:
        reasons = {(entry.name, entry.version): entry.reason for entry in engine.index()}

        assert states(engine) == {
            ("\\udcff", ""): "UNAVAILABLE",
            ("bad name", ""): "UNAVAILABLE",
            ("cut", "1"): "UNAVAILABLE",
            ("empty", ""): "UNAVAILABLE",
            ("gone", ""): "UNAVAILABLE",
            ("good", "1"): "READY",
            ("mixed", "1"): "READY",
            ("mixed", "2"): "UNAVAILABLE",
        }
        assert "model.safetensors" in reasons["cut", "1"]
        assert "no version" in reasons["empty", ""]
        assert "nonsense" in reasons["mixed", "2"]
        assert engine.ready
        assert (await scores(engine, "good")).shape == (1, 5)
        assert engine.get("mixed").version == "1"  # the newest that works
        for name, version in (("cut", None), ("mixed", "2"), ("empty", None)):
            with pytest.raises(NotReady, match="UNAVAILABLE"):
                engine.get(name, version)


@pytest.mark.parametrize("error", [DeviceOutOfMemory("no room"), RuntimeError("no kernel"), DeviceError("lost")])
async def test_a_model_that_fails_its_warm_up_is_unavailable_and_closed(tmp_path, error):
    write_model(tmp_path, "m")
    async with running(tmp_path, stage := Stage(fault=lambda batch: error)) as engine:
        (entry,) = engine.index()
        assert entry.state == "UNAVAILABLE" and str(error) in entry.reason
        assert stage.closed == [1]


async def test_the_cpu_lives_on_when_a_request_needs_more_memory_than_there_is(tmp_path):
    wide = {
        "format": 1,
        "inputs": {"x": {"axis": "row", "shape": [1]}},
        "nodes": [{"name": "y", "op": "linear", "inputs": ["x"], "out_features": 2**20}],
        "outputs": {"y": {}},
    }
    write_model(tmp_path, "m", document=wide, toml=f"max_batch_cost = {2**20}")
    async with running(tmp_path) as engine:
        with pytest.raises(OutOfMemory):
            await engine.infer(engine.get("m"), {"x": Value(torch.ones(2**20, 1))})  # would give 4 TiB

        assert (await engine.infer(engine.get("m"), {"x": Value(torch.ones(1, 1))})).items == 1


async def test_clouds_without_points_count_too(tmp_path):
    write_model(tmp_path, "m", document=CLOUDS, toml="max_batch_cost = 10")
    async with running(tmp_path, stage := Stage()) as engine:
        stage.costs.clear()
        with pytest.raises(TooLarge, match="11"):
            await engine.infer(engine.get("m"), clouds(*[0] * 11))
        assert stage.costs == []

        answer = await engine.infer(engine.get("m"), clouds(*[0] * 10))
        assert (answer.items, answer.cost) == (10, 10)


async def test_bad_requests_are_refused_before_they_are_queued(tmp_path):
    write_model(tmp_path, "m")
    async with running(tmp_path, stage := Stage()) as engine:
        stage.costs.clear()
        wrong = {"x": rows()["x"], "y": rows()["x"]}
        with pytest.raises(BadRequest, match="'y'"):
            await engine.infer(engine.get("m"), wrong)
        assert stage.costs == []


async def test_only_the_named_models_are_loaded_at_the_start(tmp_path):
    write_model(tmp_path, "a")
    write_model(tmp_path, "b")
    async with running(tmp_path, startup=("a", "ghost")) as engine:
        assert states(engine) == {("a", "1"): "READY", ("b", "1"): "UNAVAILABLE", ("ghost", ""): "UNAVAILABLE"}
        with pytest.raises(NotReady, match="not loaded"):
            engine.get("b")
        await engine.load("b")
        assert engine.get("b").ready


async def test_stopping_answers_what_waits_and_refuses_what_comes(tmp_path):
    write_model(tmp_path, "m", toml="max_batch_cost = 1")
    stage = Stage()
    engine = make_engine(tmp_path, stage)
    await engine.start()
    await stage.seen()
    stage.held = True
    model = engine.get("m")
    requests = [asyncio.create_task(engine.infer(model, rows())) for _ in range(3)]
    await stage.seen()
    stopping = asyncio.create_task(engine.stop(SECONDS))
    await asyncio.sleep(0)

    with pytest.raises(NotReady, match="stopping"):
        await engine.infer(model, rows())
    stage.open_gate()
    assert len(await asyncio.gather(*requests)) == 3
    await stopping
    assert stage.closed == [1] and stage.device_closed


async def test_stopping_gives_up_what_does_not_end_in_time(tmp_path):
    write_model(tmp_path, "m", toml="max_batch_cost = 1")
    stage = Stage()
    engine = make_engine(tmp_path, stage)
    await engine.start()
    await stage.seen()
    stage.held = True
    requests = [asyncio.create_task(engine.infer(engine.get("m"), rows())) for _ in range(2)]
    await stage.seen()
    stopping = asyncio.create_task(engine.stop(0.001))
    with pytest.raises(NotReady, match="stopping"):
        await requests[1]
    stage.open_gate()
    assert (await requests[0]).items == 1
    await stopping
    assert stage.device_closed


async def test_stopping_before_or_during_the_start_is_harmless(tmp_path, caplog):
    write_model(tmp_path, "a")
    write_model(tmp_path, "b")
    await make_engine(tmp_path).stop(1.0)

    stage = Stage(held=True)
    engine = make_engine(tmp_path, stage)
    starting = asyncio.create_task(engine.start())
    await stage.seen()  # the warm-up of a
    assert not engine.ready
    starting.cancel()
    stopping = asyncio.create_task(engine.stop(SECONDS))
    await asyncio.sleep(0)
    stage.open_gate()
    await stopping

    assert stage.programs == 1 and stage.closed == [1] and stage.device_closed
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_missing_repository_and_a_missing_device_stop_the_start(tmp_path):
    with pytest.raises(NotADirectoryError):
        await make_engine(tmp_path / "nowhere").start()

    def no_device(kind, index):
        raise DeviceError("no such device")

    engine = make_engine(tmp_path, open_device=no_device)
    with pytest.raises(DeviceError, match="no such device"):
        await engine.start()
    await engine.stop(1.0)


class Meter:
    """A meter that notes what it is told; a real one needs a GPU."""

    def __init__(self) -> None:
        self.batches, self.devices, self.closed = [], [], False

    def start(self, devices) -> None:
        self.devices = list(devices)

    def batch(self, device, shares, busy_seconds, ended_at) -> None:
        self.batches.append((device, list(shares), busy_seconds))

    def watts(self, device) -> float:
        return 100.0

    def close(self) -> None:
        self.closed = True


async def test_a_gpus_batches_are_metered_and_their_energy_divided_by_cost(tmp_path):
    write_model(tmp_path, "m")
    meter, stage = Meter(), Stage(busy=lambda cost: 0.5)
    async with running(tmp_path, stage, gpu=True, meter=meter) as engine:
        model = engine.get("m")
        answers = await asyncio.gather(engine.infer(model, rows(1)), engine.infer(model, rows(3)))

        assert [device.uuid for device in meter.devices] == ["GPU-0"]
        assert meter.batches == [(0, [("m", 4.0)], 0.5)]
        assert [answer.energy_joules for answer in answers] == [12.5, 37.5]
        assert sample(engine.metrics, "lacuna_request_energy_joules_sum", model="m") == 50.0
    assert meter.closed


async def test_every_gpu_has_a_worker_and_the_idle_one_gets_the_batch(tmp_path, monkeypatch):
    write_model(tmp_path, "m")
    write_model(tmp_path, "second", toml="devices = [1]")
    write_model(tmp_path, "absent", toml="devices = [2]")
    monkeypatch.setattr("lacuna_service.devices.gpu_count", lambda: 2)
    stages = [Stage(), Stage()]
    engine = make_engine(tmp_path, open_device=lambda kind, index: StagedBackend(stages[index], f"GPU-{index}", index))
    object.__setattr__(engine.config, "device", "cuda")
    await engine.start()
    assert {entry.name: entry.state for entry in engine.index()} == {
        "absent": "UNAVAILABLE",
        "m": "READY",
        "second": "READY",
    }
    assert [stage.programs for stage in stages] == [1, 2]
    await asyncio.gather(stages[0].seen(), stages[1].seen(), stages[1].seen())
    for stage in stages:
        stage.held = True

    first = asyncio.create_task(engine.infer(engine.get("m"), rows(1)))
    await stages[0].seen()
    second = asyncio.create_task(engine.infer(engine.get("m"), rows(2)))
    await stages[1].seen()

    assert stages[0].costs[1:] == [1] and stages[1].costs[2:] == [2]
    for stage in stages:
        stage.open_gate()
    await asyncio.gather(first, second)
    await engine.stop(SECONDS)
