"""The way of most requests, POST /predict without options, past FastAPI's routing.

Routing, dependencies and validation take a fifth of the CPU time that the server's process spends
on a photo, for nothing where there is nothing to validate.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ProblemError
from service.problems import answer_problem
from service.routes import predict
from service.routes.dependencies import TIMEOUT_HEADER
from service.schemas import PredictOptions
from service.state import ServiceState

TIMEOUT_FIELD = TIMEOUT_HEADER.lower().encode()
NO_OPTIONS = PredictOptions()


class ShortcutMiddleware:
    """Answers such a request by the route's own function; the app answers every other."""

    def __init__(self, app: ASGIApp, *, service: ServiceState) -> None:
        self._app = app
        self._service = service
        # The app's guard asks for them.
        self._asks_for_keys = service.access.asks_for_keys
        [self._route] = predict.router.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if not self._takes(scope):
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route  # what metrics and log call it
        request = Request(scope, receive, send)
        try:
            response = await predict.predict(request, NO_OPTIONS, self._service)
        except ProblemError as error:
            response = await answer_problem(request, error)
        await response(scope, receive, send)

    def _takes(self, scope: Scope) -> bool:
        return (
            scope["type"] == "http"
            and scope["path"] == "/predict"
            and scope["method"] == "POST"
            and not scope["query_string"]
            and not self._asks_for_keys
            and all(name != TIMEOUT_FIELD for name, _ in scope["headers"])
        )
