"""What a model version has done since the server started, as the statistics extension of the protocol reports it."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Duration:
    """How often something happened, and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.count += 1
        self.ns += max(0, round(seconds * 1e9))

    def document(self) -> dict[str, int]:
        """Return it as the protocol writes it."""
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class Statistics:
    """Counts of one model version; changed on the event loop only.

    inference_count   rows or clouds answered
    execution_count   batches run
    last_inference_ms when the last request came, in milliseconds since 1970; 0 if none did
    """

    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)

    def arrived(self) -> None:
        """Note that a request came."""
        self.last_inference_ms = time.time_ns() // 1_000_000

    def succeeded(
        self, items: int, seconds: float, queue: float, compute_input: float, infer: float, output: float
    ) -> None:
        """Count one answered request of `items` rows or clouds; times in seconds."""
        self.inference_count += items
        self.success.add(seconds)
        self.queue.add(queue)
        self.compute_input.add(compute_input)
        self.compute_infer.add(infer)
        self.compute_output.add(output)

    def failed(self, seconds: float) -> None:
        """Count one request that got no answer."""
        self.fail.add(seconds)

    def document(self, name: str, version: str) -> dict[str, object]:
        """Return one entry of `model_stats`."""
        parts = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_inference_ms,
            "inference_count": self.inference_count,
            "execution_count": self.execution_count,
            "inference_stats": {part: getattr(self, part).document() for part in (*parts, "cache_hit", "cache_miss")},
            "batch_stats": [],
        }
