"""Every Prometheus metric of the service, declared once.

Each app has a registry of its own, so that two apps in one process do not share counters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)

Stage = Literal["receive", "decode", "detect", "classify", "queue", "render", "total"]
Network = Literal["detector", "classifier"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
COUNTS = (0, 1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics; names follow Prometheus's rules: base units, counters end in _total."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.requests = Counter(
            "lan_fer_http_requests_total",
            "HTTP requests answered; status 499: the client left before the reply.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "lan_fer_http_request_duration_seconds",
            "Time from the request's headers to the end of its reply.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.problems = Counter(
            "lan_fer_problems_total",
            "Problem documents sent, by the last part of their type.",
            ("problem",),
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "lan_fer_stage_duration_seconds",
            "Time an image spent in one stage; queue is the wait for both networks.",
            ("stage",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.faces = Counter(
            "lan_fer_faces_total", "Faces read.", ("expression",), registry=self.registry
        )
        self.faces_per_image = Histogram(
            "lan_fer_faces_per_image", "Faces found.", buckets=COUNTS, registry=self.registry
        )
        self.images_in_flight = Gauge(
            "lan_fer_images_in_flight", "Images accepted, not answered.", registry=self.registry
        )
        self.queued = Gauge(
            "lan_fer_queued_items",
            "Images (detector) or faces (classifier) that wait for a batch.",
            ("network",),
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "lan_fer_batch_size",
            "Items in one run of a network.",
            ("network",),
            buckets=COUNTS[1:],
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "lan_fer_batch_duration_seconds",
            "Time of one run of a network.",
            ("network",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch_failures = Counter(
            "lan_fer_batch_failures_total",
            "Runs of a network that failed.",
            ("network",),
            registry=self.registry,
        )
        self.ready = Gauge(
            "lan_fer_ready",
            "1 once warmed up, 0 before and while draining.",
            registry=self.registry,
        )
        self.model = Info("lan_fer_model", "What is being served.", registry=self.registry)

    def observe_stages(self, seconds: Mapping[Stage, float]) -> None:
        """Record how long one image spent in each stage."""
        for stage, value in seconds.items():
            self.stage_seconds.labels(stage).observe(value)

    def batches_of(self, network: Network) -> BatchMetrics:
        """The observer of one network's batches."""
        return BatchMetrics(self, network)

    def watch_queue(self, network: Network, length: Callable[[], int]) -> None:
        """Read a queue's length whenever the metrics are read."""
        self.queued.labels(network).set_function(length)


class BatchMetrics:
    """Records one network's batches; safe to call from its worker threads."""

    def __init__(self, metrics: Metrics, network: Network) -> None:
        self._size = metrics.batch_size.labels(network)
        self._seconds = metrics.batch_seconds.labels(network)
        self._failures = metrics.batch_failures.labels(network)

    def batch_finished(self, size: int, seconds: float, *, failed: bool) -> None:
        """See `service.batching.BatchObserver`."""
        self._size.observe(size)
        self._seconds.observe(seconds)
        if failed:
            self._failures.inc()
