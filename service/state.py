"""What the routes of one app share, and how it starts and stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from service.access import Access
from service.budgets import ByteBudget, PixelBudget
from service.errors import ServiceError, StartupError, UnavailableError
from service.lifecycle import Lifecycle, Phase
from service.metrics import Metrics
from service.pipeline import Networks, Pipeline
from service.settings import Settings, available_cpus
from service.watch import StageWatch, WatchedPool

logger = logging.getLogger(__name__)

# For the last batches, whose waiters are gone; only a network that hangs takes longer.
STOP_SECONDS = 2.0

LoadNetworks = Callable[[Settings], Networks]
OnStarted = Callable[[StartupError | None], None]
"""Told once: None when the service is ready, or why it never will be."""


class ServiceState:
    """One running service: settings, metrics, lifecycle, threads and, once loaded, networks."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError where the API keys or their rate limit are wrong."""
        self.settings = settings
        self.access = Access.load(settings)
        self.metrics = Metrics()
        self.lifecycle = Lifecycle(
            max_in_flight_images=settings.max_in_flight_images, metrics=self.metrics
        )
        self.bodies = ByteBudget(settings.max_in_flight_bytes)
        self.pixels = PixelBudget(settings.max_in_flight_pixels)
        self.metrics.watch_memory(lambda: self.bodies.held, lambda: self.pixels.used)
        self._watch = StageWatch(give_way=True)
        self.pool = WatchedPool(
            settings.image_workers or available_cpus(), watch=self._watch, stage="image"
        )
        self._minding: asyncio.Task[None] | None = None
        self._pipeline: Pipeline | None = None

    @property
    def pipeline(self) -> Pipeline:
        """Raises UnavailableError until the networks are loaded."""
        if self._pipeline is None:
            raise UnavailableError(Phase.STARTING.value)
        return self._pipeline

    async def start(self, load: LoadNetworks, on_started: OnStarted) -> None:
        """Load, warm up, become ready; health endpoints answer meanwhile."""
        self._minding = asyncio.create_task(self._mind_stages())
        try:
            await self._load_and_warm_up(load)
        except StartupError as error:
            on_started(error)
        except ServiceError as error:
            on_started(StartupError(f"a network failed in its first run: {_causes(error)}"))
        except Exception as error:  # the edge: a start that fails must never look like a slow one
            logger.exception("unexpected error while starting")
            on_started(StartupError(f"unexpected error while starting: {_causes(error)}"))
        else:
            self.lifecycle.become_ready()
            on_started(None)

    async def _load_and_warm_up(self, load: LoadNetworks) -> None:
        networks = await asyncio.to_thread(load, self.settings)
        pipeline = Pipeline(networks, self.settings, metrics=self.metrics, watch=self._watch)
        pipeline.start()
        self._pipeline = pipeline
        contract = networks.classifier.contract
        logger.info(
            "networks loaded",
            extra={
                "model": contract.name,
                "file": networks.classifier.source,
                "detector_file": networks.detector.source,
                "provider": networks.provider,
            },
        )
        self.metrics.model.info(
            {
                "name": contract.name,
                "version": networks.classifier.sha256,
                "detector_version": networks.detector.sha256,
                "provider": networks.provider,
            }
        )
        await asyncio.to_thread(networks.warm_up)

    async def _mind_stages(self) -> None:
        limit = self.settings.stage_limit_ms / 1000
        while True:
            await asyncio.sleep(min(1.0, limit / 4))
            self.lifecycle.note_hung_stage(self._watch.hung(limit))

    async def stop(self) -> None:
        """Take no more images, finish what is queued, end the threads.

        The server calls it once it has answered, or given up, every request it had taken.
        """
        self.lifecycle.drain()
        if self._pipeline is not None:
            await self._pipeline.drain(STOP_SECONDS)
        if self._minding is not None:
            self._minding.cancel()
        self.pool.shutdown(wait=False, cancel_futures=True)


def _causes(error: BaseException | None) -> str:
    """The first line of the error and of each of its causes."""
    lines = []
    while error is not None:
        lines.append(next(iter(str(error).splitlines()), type(error).__name__))
        error = error.__cause__
    return ": ".join(lines)
