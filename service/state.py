"""What the routes of one app share, and how it starts and stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from service.access import Access
from service.budgets import ByteBudget, PixelBudget
from service.engines import Engines, engines_run_here
from service.errors import StartupError, UnavailableError
from service.lifecycle import Lifecycle, Phase
from service.metrics import Metrics
from service.model_info import log_networks, model_info
from service.observing import Load
from service.pipeline import Networks, PhotoReader, Pipeline, load_networks
from service.runtime import runs_on_cpu
from service.schemas import ModelReply
from service.settings import Settings
from service.starting import startup_error
from service.watch import StageWatch, WatchedPool

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
        self.metrics.watch_load(lambda: self.bodies.held, lambda: self.load)
        self._watch = StageWatch(give_way=True)
        self.pool = WatchedPool(settings.photo_threads, watch=self._watch, stage="image")
        self._minding: asyncio.Task[None] | None = None
        self._reader: PhotoReader | None = None
        self._engines: Engines | None = None
        self._model: ModelReply | None = None

    @property
    def reader(self) -> PhotoReader:
        """Raises UnavailableError until the networks are loaded."""
        if self._reader is None or self._model is None:
            raise UnavailableError(Phase.STARTING.value)
        return self._reader

    @property
    def model(self) -> ModelReply:
        """What is loaded. Raises UnavailableError until it is."""
        if self._model is None:
            raise UnavailableError(Phase.STARTING.value)
        return self._model

    @property
    def load(self) -> Load:
        """What waits to be read, and what is held."""
        return Load() if self._reader is None else self._reader.load

    async def start(self, load: LoadNetworks | None, on_started: OnStarted) -> None:
        """Load, warm up, become ready; health endpoints answer meanwhile."""
        self._minding = asyncio.create_task(self._mind_stages())
        try:
            if load is None and self._wants_engines():
                await self._start_engines()
            else:
                await self._start_pipeline(load or load_networks)
        except Exception as error:  # noqa: BLE001 - the edge: it says which
            if not self.lifecycle.is_draining:  # else it was told to end, and so was an engine
                on_started(startup_error(error))
        else:
            self.lifecycle.become_ready()
            on_started(None)

    def _wants_engines(self) -> bool:
        # A GPU's batches gather photos from everywhere: there one process has them all.
        on_cpu = runs_on_cpu(self.settings.provider)
        return bool(self.settings.engines) and on_cpu and engines_run_here()

    async def _start_engines(self) -> None:
        engines = Engines(self.settings, metrics=self.metrics, on_change=self._note_trouble)
        self._reader = self._engines = engines
        await engines.start(self._note_model)

    async def _start_pipeline(self, load: LoadNetworks) -> None:
        networks = await asyncio.to_thread(load, self.settings)
        pipeline = Pipeline(
            networks,
            self.settings,
            observer=self.metrics,
            pixels=PixelBudget(self.settings.max_in_flight_pixels),
            watch=self._watch,
        )
        pipeline.start()
        self._reader = pipeline
        log_networks(networks)
        self._note_model(model_info(networks))
        await asyncio.to_thread(networks.warm_up)

    def _note_model(self, model: ModelReply) -> None:
        self._model = model
        self.metrics.model.info(
            {
                "name": model.classifier.name,
                "version": model.classifier.sha256,
                "detector_version": model.detector.sha256,
                "provider": model.classifier.provider,
            }
        )

    async def _mind_stages(self) -> None:
        limit = self.settings.stage_limit_ms / 1000
        while True:
            await asyncio.sleep(min(1.0, limit / 4))
            if self._engines is not None and not self.lifecycle.is_draining:
                self._engines.end_hung(limit)
            self._note_trouble()

    def _note_trouble(self) -> None:
        if self.lifecycle.is_draining:  # engines end then
            return
        limit = self.settings.stage_limit_ms / 1000
        hung = self._watch.hung(limit)
        trouble = None if hung is None else f"the stage {hung!r} hangs"
        if self._engines is not None and self._engines.are_gone:
            trouble = "what reads the photos has ended, and is being started again"
        self.lifecycle.note_trouble(trouble)

    async def stop(self) -> None:
        """Take no more images, finish what is queued, end the threads.

        The server calls it once it has answered, or given up, every request it had taken.
        """
        self.lifecycle.drain()
        if self._reader is not None:
            await self._reader.drain(STOP_SECONDS)
        if self._minding is not None:
            self._minding.cancel()
        self.pool.shutdown(wait=False, cancel_futures=True)
