"""The application: routes, error handlers, the edge, and a lifespan that loads and drains."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from service.errors import StartupError
from service.middleware import EdgeMiddleware
from service.openapi import install_openapi
from service.pipeline import load_networks
from service.problems import install_handlers
from service.routes import health, model, page, predict
from service.settings import Settings
from service.state import LoadNetworks, OnStarted, ServiceState

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
    load: LoadNetworks = load_networks,
    on_started: OnStarted = _log_start,
) -> FastAPI:
    """The app. It answers at once, and takes photos once `load`'s networks have been warmed up.

    `on_started` is told of that, or of what went wrong; the app then never becomes ready.
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

    app = FastAPIOffline(
        redoc_url=None,
        title="lan-fer",
        version=version("lan-fer"),
        summary=SUMMARY,
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(
        EdgeMiddleware, metrics=service.metrics, max_header_bytes=settings.max_header_bytes
    )
    install_handlers(app)
    install_openapi(app)
    for router in (predict.router, model.router, health.router, page.router):
        app.include_router(router)
    return app
