"""Turning photos away cheaply: under overload most requests are refusals, and all must be quick."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import OverloadedError
from service.lifecycle import Lifecycle
from service.problems import problem_response

PATHS = ("/predict", "/predict/batch")


@dataclass(frozen=True)
class _Route:
    """What the log and the metrics call the request, which no route has seen."""

    path: str


class SheddingMiddleware:
    """Answers 429 before routing and parsing, which cost twice as much as the refusal itself.

    What is not refused here is checked again by the routes, which know more.
    """

    def __init__(self, app: ASGIApp, *, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._routes = {path: _Route(path) for path in PATHS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None or scope["method"] != "POST" or not self._lifecycle.is_full:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        error = OverloadedError("As many images are in flight as the service takes.")
        await problem_response(Request(scope), error)(scope, receive, send)
