"""What a client sees: latency, throughput and joules of a served model, over HTTP on loopback.

    python service/bench/bench_http.py lidar-minkunet scan.bin [more.bin ...] --concurrency 1 16 --seconds 5
    python service/bench/bench_http.py digits-kronecker --concurrency 1 16 64

Starts `lacuna serve` on a free port, posts point-cloud files in turn (or, without files, one random row a request as a
binary tensor), and reads what /metrics says of the same time: batch sizes, device time, energy. The clients are
processes of their own, so that they do not share an interpreter with each other or with the server.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

MODELS = Path(__file__).parents[2] / "deploy" / "models"
Metrics = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--repository", type=Path, default=MODELS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--accept", default="application/x-npy", help="what a point-cloud answer is wanted as")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()

    rows = []
    with serving(options.repository, options.device) as url:
        requests = prepare(url, options.model, options.files, options.accept)
        run(url, requests, 1, 2.0)  # warm-up
        for concurrency in options.concurrency:
            run(url, requests, concurrency, 1.0)
            time.sleep(1.2)  # the exported energy lags a second behind
            before = read_metrics(url)
            seconds, latencies = run(url, requests, concurrency, options.seconds)
            time.sleep(1.2)
            rows.append(figures(options.model, concurrency, seconds, latencies, before, read_metrics(url)))
            print("  ".join(f"{key} {value:.4g}" for key, value in rows[-1].items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


@contextmanager
def serving(repository: Path, device: str) -> Iterator[str]:
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "lacuna_service", "serve", "--repository", str(repository)]
        command += ["--port", "0", "--device", device]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            yield ready(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            print("server exit status", process.wait(60))


def ready(process: "subprocess.Popen[bytes]", log: "tempfile._TemporaryFileWrapper[bytes]") -> str:
    for _ in range(1200):
        time.sleep(0.1)
        text = os.pread(log.fileno(), 1 << 20, 0).decode()
        url = re.search(r'"url":"([^"]+)"', text)
        if url and '"message":"ready"' in text:
            return url[1]
        if process.poll() is not None:
            break
    raise SystemExit(f"the server did not get ready:\n{text}")


def prepare(url: str, model: str, files: list[Path], accept: str) -> list[tuple[str, bytes, dict[str, str]]]:
    """Path, body and headers of each request."""
    if files:
        headers = {"Content-Type": "application/octet-stream", "Accept": accept}
        return [(f"/v2/models/{model}/pointcloud?format=bin", path.read_bytes(), headers) for path in files]
    wanted = httpx.get(f"{url}/v2/models/{model}").json()["inputs"][0]
    row = np.random.default_rng(0).normal(size=[1, *wanted["shape"][1:]]).astype(np.float32)
    tensor = {"name": wanted["name"], "datatype": "FP32", "shape": row.shape}
    tensor["parameters"] = {"binary_data_size": row.nbytes}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return [
        (f"/v2/models/{model}/infer", header + row.tobytes(), {"Inference-Header-Content-Length": str(len(header))})
    ]


def run(
    url: str, requests: list[tuple[str, bytes, dict[str, str]]], concurrency: int, seconds: float
) -> tuple[float, list[float]]:
    """Post for some time from `concurrency` connections: how long it took, and the latencies in seconds."""
    with multiprocessing.get_context("spawn").Pool(concurrency) as pool:
        pool.map(abs, range(concurrency))  # all have started
        start = time.perf_counter()
        shares = [(url, requests, turn, seconds) for turn in range(concurrency)]
        results = pool.starmap(post, shares, chunksize=1)
        took = time.perf_counter() - start
    return took, [latency for result in results for latency in result]


def post(url: str, requests: list[tuple[str, bytes, dict[str, str]]], turn: int, seconds: float) -> list[float]:
    """Post one request after the other over one connection, as plainly as Python can, starting at number `turn`."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    latencies, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        path, body, headers = requests[turn % len(requests)]
        start = time.perf_counter()
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        text = response.read()
        assert response.status == 200, text
        latencies.append(time.perf_counter() - start)
        turn += 1
    connection.close()
    return latencies


def read_metrics(url: str) -> Metrics:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def figures(
    model: str, concurrency: int, seconds: float, latencies: list[float], before: Metrics, after: Metrics
) -> dict[str, float]:
    def gain(name: str, labels: str = f'model="{model}"') -> float:
        key = f"lacuna_{name}{{{labels}}}"
        return after.get(key, 0.0) - before.get(key, 0.0)

    def mean_ms(step: str) -> float:
        return 1000 * gain(f"{step}_seconds_sum") / (gain(f"{step}_seconds_count") or 1.0)

    ms = sorted(1000 * latency for latency in latencies)
    batches = gain("batch_requests_count") or 1.0
    result = {
        "concurrency": float(concurrency),
        "requests_per_s": len(ms) / seconds,
        "p50_ms": statistics.median(ms),
        "p99_ms": ms[int(0.99 * (len(ms) - 1))],
        "mean_batch": gain("batch_requests_sum") / batches,
        **{f"{step}_ms": mean_ms(step) for step in ("decode", "queue", "compute", "encode")},
    }
    device = gain("device_energy_joules_total", 'device="0"')
    if device:
        named = {key: after[key] - before.get(key, 0.0) for key in after if "lacuna_energy_joules_total{" in key}
        result |= {
            "joules_per_request": gain("energy_joules_total") / len(ms),
            "device_joules": device,
            "models_and_idle_joules": sum(named.values()),
        }
    return result


if __name__ == "__main__":
    main()
