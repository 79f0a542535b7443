"""The application: routes, error handlers, the edge, and a lifespan that loads and drains."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.types import Lifespan

from service.cors import allow_origins
from service.errors import StartupError
from service.middleware import EdgeMiddleware
from service.openapi import install_openapi
from service.problems import install_handlers
from service.routes import batch, docs, health, model, page, predict, v2
from service.routes.access import include_guarded
from service.security_headers import SecurityHeadersMiddleware
from service.settings import Settings
from service.shortcut import ShortcutMiddleware
from service.state import LoadNetworks, OnStarted, ServiceState
from service.traces import add_traces, stop_traces

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

SUMMARY = "Reads facial expressions from photos, robust to head pose, and shows where it looked."


def _log_start(error: StartupError | None) -> None:
    if error is None:
        logger.info("ready")
    else:
        logger.critical("cannot start: %s", error.detail)


def create_app(
    settings: Settings,
    *,
    load: LoadNetworks | None = None,
    on_started: OnStarted = _log_start,
) -> FastAPI:
    """The app. It answers at once, and takes photos once its networks have been warmed up.

    They are in engines, processes of their own, as the settings say; those that `load` gives are in
    this one. `on_started` is told of that, or of what went wrong; the app then never becomes ready.
    """
    service = ServiceState(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(service.start(load, on_started))
        try:
            yield
        finally:
            starting.cancel()
            await service.stop()
            if provider is not None:
                await stop_traces(provider)

    app = _bare_app(lifespan, docs=settings.docs)
    app.state.service = service
    provider = _add_middleware(app, settings, service)
    install_handlers(app)
    _include_routers(app, settings)
    return app


def _bare_app(lifespan: Lifespan[FastAPI], *, docs: bool) -> FastAPI:
    make: Callable[..., FastAPI] = partial(FastAPI, docs_url=None, redoc_url=None, openapi_url=None)
    if docs:
        # It serves Swagger UI's files; the page itself is routes.docs, for its policy.
        make = partial(FastAPIOffline, None, None)
    app = make(
        title="lan-fer",
        version=version("lan-fer"),
        summary=SUMMARY,
        lifespan=lifespan,
        redirect_slashes=False,  # to where the Host header says, and without a problem document
    )
    install_openapi(app)
    return app


def _add_middleware(
    app: FastAPI, settings: Settings, service: ServiceState
) -> TracerProvider | None:
    """The last one added is the first to see a request."""
    app.add_middleware(ShortcutMiddleware, service=service)
    if settings.cors_origins is not None:
        allow_origins(app, settings.cors_origins)
    provider = add_traces(app) if settings.traces == "otlp" else None
    app.add_middleware(
        EdgeMiddleware, metrics=service.metrics, max_header_bytes=settings.max_header_bytes
    )
    app.add_middleware(SecurityHeadersMiddleware)
    return provider


def _include_routers(app: FastAPI, settings: Settings) -> None:
    include_guarded(app, predict.router, counted=True)
    include_guarded(app, batch.router, counted=True)
    include_guarded(app, v2.router, counted=True)
    include_guarded(app, model.router)
    include_guarded(app, v2.metadata_router)
    for router, guarded in (
        (health.router, settings.health_needs_key),
        (v2.health_router, settings.health_needs_key),
        (health.metrics_router, settings.metrics_needs_key),
    ):
        if guarded:
            include_guarded(app, router)
        else:
            app.include_router(router)
    app.include_router(page.router)
    if settings.docs:
        app.include_router(docs.router)
