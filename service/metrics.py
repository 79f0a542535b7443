"""Every Prometheus metric of the service, declared once.

Each app has a registry of its own, so that two apps in one process do not share counters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import get_args

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

from service.observing import NETWORKS, Load, Network, Stage

PREFIX = "lan_fer_"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
COUNTS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
# Of a winner among K classes: from 1/K up, closest together where most of them lie.
CONFIDENCES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """The metrics; names follow Prometheus's rules: base units, counters end in _total."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collect in (ProcessCollector, PlatformCollector, GCCollector):
            collect(registry=self.registry)
        self._declare_http()
        self._declare_images()
        self._declare_networks()

    def _declare_http(self) -> None:
        self.requests = self._counter(
            "http_requests_total",
            "HTTP requests answered; status 499: the client left before the reply.",
            ("method", "route", "status"),
        )
        self.request_seconds = self._histogram(
            "http_request_duration_seconds",
            "Time from the request's headers to the end of its reply.",
            ("route",),
        )
        self.problems = self._counter(
            "problems_total",
            "Problem documents sent, by the last part of their type.",
            ("problem",),
        )
        self.connections = self._gauge("connections", "Connections that are open.")
        self.refusals = self._counter(
            "refused_connections_total",
            "Connections ended before a request was whole, or because their client did not read.",
            ("reason",),
        )

    def _declare_images(self) -> None:
        self.ready = self._gauge("ready", "1 once warmed up, 0 before and while draining.")
        self.images_in_flight = self._gauge("images_in_flight", "Images accepted, not answered.")
        self.images_in_flight_limit = self._gauge(
            "images_in_flight_limit", "Images in flight from which on the next one is turned away."
        )
        self.body_bytes = self._gauge("body_bytes", "Bytes of request bodies that are held.")
        self.pixels = self._gauge("pixels_in_flight", "Decoded pixels that are held.")
        self.stage_seconds = self._histogram(
            "stage_duration_seconds",
            "Time an image spent in one stage; queue is the wait for a thread and the networks.",
            ("stage",),
        )
        # Looked up once: each photo passes all of them, and a reader sees those without any.
        self._stages = {stage: self.stage_seconds.labels(stage) for stage in get_args(Stage)}
        self.faces = self._counter("faces_total", "Faces read.", ("expression",))
        self.face_confidence = self._histogram(
            "face_confidence", "Probability of the expression that was read.", (), CONFIDENCES
        )
        self.faces_per_image = self._histogram("faces_per_image", "Faces found.", (), COUNTS)

    def _declare_networks(self) -> None:
        network = ("network",)
        self.model = Info(PREFIX + "model", "What is being served.", registry=self.registry)
        self.queued = self._gauge(
            "queued_items",
            "Looks at images (detector) or faces (classifier) that wait for a batch.",
            network,
        )
        self.waiting = self._gauge(
            "waiting_photos", "Photos accepted that wait for a thread to read them."
        )
        self.batch_size = self._histogram(
            "batch_size", "Items in one run of a network.", network, COUNTS[1:]
        )
        self.batch_seconds = self._histogram(
            "batch_duration_seconds", "Time of one run of a network.", network
        )
        self.batch_failures = self._counter(
            "batch_failures_total", "Runs of a network that failed.", network
        )
        self._batches = {network: BatchMetrics(self, network) for network in NETWORKS}
        self.engines = self._gauge("engines", "Engines, the processes that read photos, now ready.")
        self.engine_restarts = self._counter(
            "engine_restarts_total", "Engines that ended and were started again."
        )
        self.engine_cpu_seconds = self._counter(
            "engine_cpu_seconds_total", "CPU time of the engines; the server's own is apart."
        )
        self.engine_bytes = self._gauge(
            "engine_resident_memory_bytes", "Resident memory of the engines; see above."
        )

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(PREFIX + name, text, labels, registry=self.registry)

    def _histogram(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...],
        buckets: Sequence[float] = SECONDS,
    ) -> Histogram:
        return Histogram(PREFIX + name, text, labels, registry=self.registry, buckets=buckets)

    def observe_stages(self, seconds: Mapping[Stage, float]) -> None:
        """Record how long one image spent in each stage."""
        for stage, value in seconds.items():
            self._stages[stage].observe(value)

    def photo_read(
        self,
        seconds: Mapping[Stage, float],
        faces_found: int,
        faces: Sequence[tuple[str, float]],
    ) -> None:
        """See `service.observing.Observer`."""
        self.observe_stages(seconds)
        self.faces_per_image.observe(faces_found)
        for label, probability in faces:
            self.faces.labels(label).inc()
            self.face_confidence.observe(probability)

    def batches_of(self, network: Network) -> BatchMetrics:
        """The observer of one network's batches."""
        return self._batches[network]

    def watch_load(self, body_bytes: Callable[[], int], load: Callable[[], Load]) -> None:
        """Read what waits and what is held in memory whenever the metrics are read."""
        self.body_bytes.set_function(body_bytes)
        self.pixels.set_function(lambda: load().pixels)
        self.waiting.set_function(lambda: load().waiting_photos)
        for network in NETWORKS:
            self.queued.labels(network).set_function(_queue_of(network, load))


def _queue_of(network: Network, load: Callable[[], Load]) -> Callable[[], int]:
    return lambda: load().queued.get(network, 0)


class BatchMetrics:
    """Records one network's batches; safe to call from its worker threads."""

    def __init__(self, metrics: Metrics, network: Network) -> None:
        self._size = metrics.batch_size.labels(network)
        self._seconds = metrics.batch_seconds.labels(network)
        self._failures = metrics.batch_failures.labels(network)

    def batch_finished(self, size: int, seconds: float, *, failed: bool) -> None:
        """See `service.observing.BatchObserver`."""
        self._size.observe(size)
        self._seconds.observe(seconds)
        if failed:
            self._failures.inc()
