"""Turning photos away cheaply: under overload most requests are refusals, and all must be quick."""

from __future__ import annotations

import logging
import time

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import OverloadedError
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.middleware import REQUEST_ID_HEADER, request_id_of
from service.problems import MEDIA_TYPE, problem_of
from service.security_headers import HEADERS

PATHS = frozenset(("/predict", "/predict/batch"))
# Refusals are logged together, not one by one: that would cost more than refusing does.
LOG_EVERY_SECONDS = 1.0

logger = logging.getLogger(__name__)


class SheddingMiddleware:
    """Answers 429 before any other middleware, routing or parsing, at a fraction of their cost.

    What is not refused here is checked again by the routes, which know more.
    """

    def __init__(self, app: ASGIApp, *, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._error = OverloadedError("As many images are in flight as the service takes.")
        fixed = {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store"}
        fixed |= self._error.headers | HEADERS
        self._headers = [(k.lower().encode(), v.encode()) for k, v in fixed.items()]
        self._unlogged = 0
        self._logged_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        refused = (
            scope["type"] == "http"
            and scope["path"] in PATHS
            and scope["method"] == "POST"
            and self._lifecycle.is_full
        )
        if refused:
            await self._refuse(scope, send)
        else:
            await self._app(scope, receive, send)

    async def _refuse(self, scope: Scope, send: Send) -> None:
        request_id = request_id_of(Request(scope).headers.get(REQUEST_ID_HEADER))
        problem = problem_of(self._error, request_id)
        body = problem.model_dump_json(exclude_none=True).encode()
        headers = [
            *self._headers,
            (b"content-length", str(len(body)).encode()),
            (REQUEST_ID_HEADER.lower().encode(), request_id.encode()),
        ]
        self._note(scope["path"])
        await send(
            {"type": "http.response.start", "status": self._error.status, "headers": headers}
        )
        await send({"type": "http.response.body", "body": body})

    def _note(self, path: str) -> None:
        self._metrics.requests.labels("POST", path, str(self._error.status)).inc()
        self._metrics.problems.labels(self._error.slug).inc()
        self._unlogged += 1
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY_SECONDS:
            logger.warning("photos turned away", extra={"count": self._unlogged})
            self._unlogged, self._logged_at = 0, now
