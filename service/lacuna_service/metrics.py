"""Every metric of the server, declared once: base units, prefix `lacuna_`, labels from short closed lists only.

A series of a model exists from the model's first load on, so an unknown name never becomes a label value; series of
energy and of devices exist only where there is a GPU to measure.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

SECONDS = tuple(0.00025 * 2**step for step in range(17))  # 0.25 ms to 16 s
POWERS_OF_TWO = tuple(float(2**step) for step in range(11))  # requests in a batch
COSTS = tuple(float(4**step) for step in range(12))  # rows or points in a batch, to 4 million
JOULES = tuple(0.001 * 2**step for step in range(17))  # 1 mJ to 65 J


class Metrics:
    """All metrics, in a registry of their own so that two servers, or two tests, never share a count.

    The routes count requests, their bytes and whole durations; the batcher counts queues, batches and refusals;
    the engine counts models and programs; the power sampler counts devices and energy.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # else every series has a second one, of its birth, that nobody reads
        self.registry = registry or CollectorRegistry()
        self._declare_requests()
        self._declare_batches()
        self._declare_models()
        self._declare_devices()
        self._declare_energy()

    def _declare_requests(self) -> None:
        self.requests = self._counter(
            "requests_total", "Inference requests answered, by outcome: ok or the name of the error", "model", "outcome"
        )
        self.rejected = self._counter(
            "rejected_total", "Requests that were given up before they were run, by reason", "model", "reason"
        )
        self.request_seconds = self._seconds("request_seconds", "Time from a request's first byte read to its answer")
        self.decode_seconds = self._seconds("decode_seconds", "Time to turn a body into checked tensors")
        self.encode_seconds = self._seconds("encode_seconds", "Time to turn outputs into a body")
        self.request_bytes = self._counter("request_bytes_total", "Bytes of request bodies", "model")
        self.response_bytes = self._counter("response_bytes_total", "Bytes of answers", "model")

    def _declare_batches(self) -> None:
        self.queue_seconds = self._seconds("queue_seconds", "Time from arrival to the start of the batch")
        self.compute_seconds = self._seconds("compute_seconds", "Time of a batch from its start to its outputs")
        self.queue_depth = self._gauge("queue_depth", "Requests that wait", "model")
        self.batch_requests = self._histogram("batch_requests", "Requests in a batch", POWERS_OF_TWO)
        self.batch_cost = self._histogram("batch_cost", "Rows or points in a batch", COSTS)

    def _declare_models(self) -> None:
        self.model_ready = self._gauge("model_ready", "Whether a version answers: 1 or 0", "model", "version")
        self.program_capacity = self._gauge(
            "program_capacity", "Largest batch that a plan exists for, in rows or points", "model", "version", "device"
        )
        self.program_memory_bytes = self._gauge(
            "program_memory_bytes", "Device memory of weights and plans", "model", "version", "device"
        )
        self.program_builds = self._counter("program_builds_total", "Plans built, by why", "model", "why")

    def _declare_devices(self) -> None:
        self.device_power_watts = self._gauge("device_power_watts", "Power drawn now", "device")
        self.device_energy_joules = self._counter(
            "device_energy_joules_total", "Energy by the device's meter", "device"
        )
        self.device_memory_bytes = self._gauge("device_memory_bytes", "Device memory, by kind", "device", "kind")
        self.device_utilization_ratio = self._gauge("device_utilization_ratio", "Busy share of time, 0 to 1", "device")
        self.device_clock_hertz = self._gauge("device_clock_hertz", "Clock of the multiprocessors", "device")
        self.device_temperature_celsius = self._gauge("device_temperature_celsius", "Temperature", "device")

    def _declare_energy(self) -> None:
        self.energy_joules = self._counter(
            "energy_joules_total", "Energy by the model that used it; idle for what no batch used", "model"
        )
        self.request_energy_joules = self._histogram(
            "request_energy_joules", "Energy of a request, modelled from the running power", JOULES
        )

    def text(self) -> bytes:
        """Return all series in the text format of Prometheus."""
        return generate_latest(self.registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, namespace="lacuna", registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, namespace="lacuna", registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, meaning, ["model"], namespace="lacuna", registry=self.registry, buckets=buckets)

    def _seconds(self, name: str, meaning: str) -> Histogram:
        return self._histogram(name, meaning, SECONDS)
