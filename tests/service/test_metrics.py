"""The names of all series, and what exists without a GPU."""

from itertools import pairwise

import pytest

from lacuna_service.metrics import SECONDS, Metrics
from tests.service.serving_cases import Stage, make_engine, rows, sample, write_model

NAMES = {
    "lacuna_requests_total": {"model", "outcome"},
    "lacuna_rejected_total": {"model", "reason"},
    "lacuna_request_seconds": {"model"},
    "lacuna_queue_seconds": {"model"},
    "lacuna_decode_seconds": {"model"},
    "lacuna_compute_seconds": {"model"},
    "lacuna_encode_seconds": {"model"},
    "lacuna_batch_requests": {"model"},
    "lacuna_batch_cost": {"model"},
    "lacuna_queue_depth": {"model"},
    "lacuna_model_ready": {"model", "version"},
    "lacuna_program_capacity": {"model", "version", "device"},
    "lacuna_program_memory_bytes": {"model", "version", "device"},
    "lacuna_program_builds_total": {"model", "why"},
    "lacuna_request_bytes_total": {"model"},
    "lacuna_response_bytes_total": {"model"},
    "lacuna_device_power_watts": {"device"},
    "lacuna_device_energy_joules_total": {"device"},
    "lacuna_device_memory_bytes": {"device", "kind"},
    "lacuna_device_utilization_ratio": {"device"},
    "lacuna_device_clock_hertz": {"device"},
    "lacuna_device_temperature_celsius": {"device"},
    "lacuna_energy_joules_total": {"model"},
    "lacuna_request_energy_joules": {"model"},
}


def test_the_names_are_those_that_dashboards_are_made_of():
    lines = Metrics().text().decode().splitlines()

    assert {line.split()[2] for line in lines if line.startswith("# TYPE")} == set(NAMES)


def test_labels_are_from_closed_lists():
    metrics = Metrics()
    declared = {name: metric for metric in vars(metrics).values() for name in NAMES if _is(metric, name)}

    assert {name: set(metric._labelnames) for name, metric in declared.items()} == NAMES


def _is(metric, name: str) -> bool:
    return getattr(metric, "_name", None) == name.removesuffix("_total")


def test_durations_are_told_apart_from_a_quarter_of_a_millisecond_to_ten_seconds():
    assert SECONDS[0] == 0.00025
    assert SECONDS[-1] >= 10.0
    assert all(b == 2 * a for a, b in pairwise(SECONDS))


def test_two_servers_share_no_count():
    one, other = Metrics(), Metrics()
    one.requests.labels("m", "ok").inc()

    assert 'outcome="ok"' in one.text().decode()
    assert 'outcome="ok"' not in other.text().decode()


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_a_served_model_has_its_series_and_no_energy_without_a_gpu(tmp_path):
    write_model(tmp_path, "m", toml="max_batch_cost = 64")
    engine = make_engine(tmp_path)
    await engine.start()
    await engine.infer(engine.get("m"), rows(3))
    text = engine.metrics.text().decode()
    await engine.stop(1.0)

    for line in (
        'lacuna_model_ready{model="m",version="1"} 1.0',
        'lacuna_batch_cost_sum{model="m"} 3.0',
        'lacuna_batch_requests_count{model="m"} 1.0',
        'lacuna_queue_depth{model="m"} 0.0',
        'lacuna_queue_seconds_count{model="m"} 1.0',
        'lacuna_compute_seconds_count{model="m"} 1.0',
        'lacuna_program_capacity{device="cpu",model="m",version="1"} 64.0',
        'lacuna_program_builds_total{model="m",why="load"} 1.0',
    ):
        assert line in text
    series = [line for line in text.splitlines() if not line.startswith("#")]
    assert not [line for line in series if "energy" in line or "device_" in line]
    assert not [line for line in series if "_created" in line]


@pytest.mark.anyio
async def test_plans_are_counted_as_they_are_built_and_over_reloads(tmp_path):
    write_model(tmp_path, "m")
    engine = make_engine(tmp_path, stage := Stage())
    await engine.start()
    for built in (2, 2, 5):
        stage.growth["growth"] = built
        await engine.infer(engine.get("m"), rows())
    assert sample(engine.metrics, "lacuna_program_builds_total", model="m", why="growth") == 5
    assert sample(engine.metrics, "lacuna_program_builds_total", model="m", why="load") == 1

    stage.growth.clear()
    await engine.load("m")
    assert sample(engine.metrics, "lacuna_program_builds_total", model="m", why="load") == 2
    assert sample(engine.metrics, "lacuna_program_capacity", model="m", version="1", device="cpu") == 256

    await engine.unload("m")
    assert sample(engine.metrics, "lacuna_program_capacity", model="m", version="1", device="cpu") is None
    await engine.stop(1.0)
