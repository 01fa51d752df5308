"""What Prometheus is told: requests, the queue, batches, seconds by stage, failures by reason."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class Metrics:
    """A registry of its own, so that two servers in one process do not share it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cmcr_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self.failures = Counter(
            "cmcr_failures", "Requests refused.", ["reason"], registry=self.registry
        )
        self.inside = Gauge("cmcr_inputs_waiting", "Inputs in work.", registry=self.registry)
        self.batches = Histogram(
            "cmcr_batch_inputs", "Inputs a batch.", ["space", "modality"],
            buckets=_SIZES, registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "cmcr_stage_seconds", "Seconds of an input.", ["stage"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip

    def batch(self, space: str, modality: str, count: int) -> None:
        """A batch of `count` leaves."""
        self.batches.labels(space, modality).observe(count)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Its seconds are counted."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds.labels(name).observe(time.perf_counter() - began)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
