"""The dashboard: each of its queries, asked of a real Prometheus that scrapes the real server under traffic.

The panels of GPUs and energy have nothing to show of a server on a CPU. They are asked again of a second job, whose
series are declared by the same class and counted here.
"""

import json
import math
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import start_http_server
from prometheus_client.metrics_core import Metric

from lacuna_service.metrics import Metrics
from tests.service import networks
from tests.system.running import Running

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "lacuna.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
TARGETS = {f"{panel['title']} {target['refId']}": target for panel in PANELS for target in panel["targets"]}
QUERIES: dict[str, str] = {title: target["expr"] for title, target in TARGETS.items()}
MODELS = ["tiny-kronecker", "tiny-minkunet"]
DEVICES = ["0", "1"]
SERVER, METERED = "lacuna", "metered"  # jobs
WAIT_S = 60.0

needs_prometheus = pytest.mark.skipif(
    not shutil.which("prometheus"), reason="no Prometheus on this machine (Debian: apt-get install prometheus)"
)


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A Prometheus that has scraped a busy server up to a moment, in Unix seconds."""

    url: str
    moment: float

    def ask(self, query: str, model: str = ".*", job: str = SERVER) -> list[dict[str, Any]]:
        """The series of a dashboard's query, as Grafana would fill it in, where one job alone is scraped."""
        query = of_job(query, job)
        query = query.replace("$__rate_interval", "15s").replace("$model", model)
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query, "time": self.moment}).json()
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])


def of_job(query: str, job: str) -> str:
    """Narrow each of a query's metrics to one job."""
    query = re.sub(r"(lacuna_\w+)(?![\w{])", r"\1{}", query)
    return re.sub(r"(lacuna_\w+){", rf'\1{{job="{job}",', query).replace(",}", "}")


@contextmanager
def exporting(metrics: Metrics) -> Iterator[str]:
    """Serve metrics on a free port: its address."""
    exporter, thread = start_http_server(0, "127.0.0.1", metrics.registry)
    try:
        yield f"127.0.0.1:{exporter.server_port}"
    finally:
        exporter.shutdown()
        exporter.server_close()
        thread.join()


@pytest.fixture(scope="module")
def prometheus(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load(CONFIG.read_text())
    config["global"] = dict.fromkeys(config["global"], "1s")
    (job,) = config["scrape_configs"]
    assert job["job_name"] == SERVER
    job["static_configs"] = [{"targets": [server.address]}]
    metered = Metrics()
    with exporting(metered) as exporter:
        config["scrape_configs"].append({"job_name": METERED, "static_configs": [{"targets": [exporter]}]})
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with running_prometheus(folder) as url:
            yield under_traffic(Prometheus(url, 0.0), server, metered)


@contextmanager
def running_prometheus(folder: Path) -> Iterator[str]:
    """Start Prometheus with the folder's configuration: its URL."""
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def under_traffic(prometheus: Prometheus, server: Running, metered: Metrics) -> Prometheus:
    """Send requests of every kind until what they count has been scraped four times, of both jobs."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        send_requests(server)
        use_energy(metered)
        now = Prometheus(prometheus.url, time.time())
        try:
            scraped = [
                now.ask("min(count_over_time(lacuna_rejected_total[15s]))"),
                now.ask("min(count_over_time(lacuna_request_energy_joules_count[15s]))", job=METERED),
            ]
        except httpx.TransportError:  # it is starting
            continue
        if all(series and int(series[0]["value"][1]) >= 4 for series in scraped):
            return now
    raise AssertionError("Prometheus has not scraped the server")


def use_energy(metrics: Metrics) -> None:
    """Count what two GPUs would: a request of each model, and energy that nobody used."""
    for model in MODELS:
        metrics.requests.labels(model, "ok").inc()
        metrics.energy_joules.labels(model).inc(2.0)
        metrics.request_energy_joules.labels(model).observe(2.0)
    metrics.energy_joules.labels("idle").inc(1.0)
    for device in DEVICES:
        metrics.device_energy_joules.labels(device).inc(2.5)
        metrics.device_power_watts.labels(device).set(120.0)
        metrics.device_utilization_ratio.labels(device).set(0.5)
        metrics.device_temperature_celsius.labels(device).set(40.0)
        metrics.device_clock_hertz.labels(device).set(1.98e9)
        for kind, size in (("total", 3e9), ("used", 1e9), ("free", 2e9)):
            metrics.device_memory_bytes.labels(device, kind).set(size)


def send_requests(server: Running) -> None:
    """Rows, a cloud, and rows beyond the limit, which are refused."""
    for count, status in ((3, 200), (100_000, 413)):
        row = networks.rows(count)
        tensor = {"name": "x", "datatype": "FP32", "shape": list(row.shape), "parameters": {}}
        tensor["parameters"] = {"binary_data_size": row.nbytes}
        header = json.dumps({"inputs": [tensor]}).encode()
        answer = httpx.post(
            f"{server.url}/v2/models/tiny-kronecker/infer",
            content=header + row.tobytes(),
            headers={"Inference-Header-Content-Length": str(len(header))},
        )
        assert answer.status_code == status, answer.text
    cloud = networks.cloud(500).tobytes()
    assert httpx.post(f"{server.url}/v2/models/tiny-minkunet/pointcloud", content=cloud).status_code == 200


def series_of(metric: Metric) -> set[str]:
    """Names that a metric's series have in Prometheus."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric.type, [""])
    return {metric.name + suffix for suffix in suffixes}


DECLARED = {metric.name: series_of(metric) for metric in Metrics().registry.collect()}


def names_in(query: str) -> set[str]:
    return set(re.findall(r"lacuna_\w+", query))


def needs_gpu(query: str) -> bool:
    return any("lacuna_device_" in name or "energy_joules" in name for name in names_in(query))


@needs_prometheus
@pytest.mark.parametrize("title", [title for title, query in QUERIES.items() if not needs_gpu(query)])
def test_a_query_about_requests_gives_numbers_and_what_its_legend_says(prometheus: Prometheus, title: str) -> None:
    series = prometheus.ask(QUERIES[title])
    legend = re.findall(r"{{(\w+)}}", TARGETS[title]["legendFormat"])

    assert any(float(one["value"][1]) >= 0 for one in series), series  # NaN is not
    assert all(set(legend) <= set(one["metric"]) for one in series)


@needs_prometheus
@pytest.mark.parametrize("title", [title for title, query in QUERIES.items() if needs_gpu(query)])
def test_a_query_about_the_gpu_gives_nothing_without_one(prometheus: Prometheus, title: str) -> None:
    assert prometheus.ask(QUERIES[title]) == []


@needs_prometheus
@pytest.mark.parametrize("title", [title for title, query in QUERIES.items() if needs_gpu(query)])
def test_a_query_about_the_gpu_gives_numbers_and_what_its_legend_says_with_one(
    prometheus: Prometheus, title: str
) -> None:
    series = prometheus.ask(QUERIES[title], job=METERED)
    (label,) = re.findall(r"{{(\w+)}}", TARGETS[title]["legendFormat"])
    models = MODELS if "$model" in QUERIES[title] else ["idle", *MODELS]

    assert sorted(one["metric"][label] for one in series) == {"device": DEVICES, "model": models}[label]
    assert all(0 < float(one["value"][1]) < math.inf for one in series), series  # NaN is not


@needs_prometheus
@pytest.mark.parametrize("title", [title for title, query in QUERIES.items() if "$model" in query])
def test_choosing_a_model_hides_the_others(prometheus: Prometheus, title: str) -> None:
    series = prometheus.ask(QUERIES[title], model=MODELS[0])

    assert {one["metric"]["model"] for one in series} == (set() if needs_gpu(QUERIES[title]) else {MODELS[0]})


@needs_prometheus
def test_the_choice_of_models_is_what_the_server_has(prometheus: Prometheus) -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"])

    assert match is not None
    answer = httpx.get(f"{prometheus.url}/api/v1/label/{match[2]}/values", params={"match[]": match[1]}).json()
    assert answer["data"] == MODELS


@needs_prometheus
def test_the_shipped_configuration_is_valid_as_it_is() -> None:
    done = subprocess.run(["promtool", "check", "config", CONFIG], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_the_metrics_follow_the_rules_of_prometheus(prometheus: Prometheus, server: Running) -> None:
    text = httpx.get(f"{server.url}/metrics").text
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    shown = set().union(*(names_in(query) for query in QUERIES.values()))

    assert shown <= set().union(*DECLARED.values())
    assert [name for name, series in DECLARED.items() if not series & shown] == []


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    cells = [
        {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        for place in (panel["gridPos"] for panel in PANELS)
    ]

    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len(QUERIES) == sum(len(panel["targets"]) for panel in PANELS)
    assert not [1 for one, other in combinations(cells, 2) if one & other]
    assert all(x < 24 for x, _ in set().union(*cells))


def test_panels_ask_the_data_source_that_is_provisioned() -> None:
    provisioned = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    (source,) = provisioned["datasources"]
    asked = [item["datasource"] for item in (*PANELS, *DASHBOARD["templating"]["list"])]

    assert {(item["type"], item["uid"]) for item in asked} == {(source["type"], source["uid"])}
    assert source["jsonData"]["timeInterval"] == yaml.safe_load(CONFIG.read_text())["global"]["scrape_interval"]
