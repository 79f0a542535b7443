"""The edge of the application: request id, limits on headers, last-resort errors, access log."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from http import HTTPMethod

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from service.errors import HeadersTooLargeError, UnavailableError, UnexpectedError
from service.metrics import Metrics
from service.problems import problem_response
from service.route_names import route_of

REQUEST_ID_HEADER = "X-Request-ID"
VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
CLIENT_CLOSED_REQUEST = 499
METHODS = frozenset(HTTPMethod)

access_logger = logging.getLogger("service.access")
logger = logging.getLogger(__name__)


class EdgeMiddleware:
    """Wraps every HTTP request of the app; nothing that is raised inside gets past it."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, max_header_bytes: int) -> None:
        self._app = app
        self._metrics = metrics
        self._max_header_bytes = max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        with bound_contextvars(request_id=exchange.request_id):
            try:
                await self._answer(scope, exchange)
            finally:
                exchange.record(self._metrics)

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        request = Request(scope)
        try:
            if _header_bytes(scope) > self._max_header_bytes:
                error = HeadersTooLargeError(
                    f"Request line and headers may have {self._max_header_bytes} bytes."
                )
                response = problem_response(request, error)
                await response(scope, exchange.receive, exchange.send)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = CLIENT_CLOSED_REQUEST
        except asyncio.CancelledError:
            # The stop took longer than the service may: still an answer, rather than none.
            if exchange.status is None:
                stopped = UnavailableError("The service stopped before the answer was ready.")
                await problem_response(request, stopped)(scope, exchange.receive, exchange.send)
            # Not raised again: the server's task ends here anyway, and would log it as a fault.
        except Exception:
            # The edge: log everything, show the client nothing.
            logger.exception("unexpected error")
            if exchange.status is None:
                response = problem_response(request, UnexpectedError())
                await response(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its reply, counted on their way through."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = time.perf_counter()
        self._bytes_in = 0
        self._bytes_out = 0
        self.status: int | None = None
        self.request_id = request_id_of(Request(scope).headers.get(REQUEST_ID_HEADER))
        self._state = scope.setdefault("state", {})
        self._state["request_id"] = self.request_id

    async def receive(self) -> Message:
        message = await self._receive()
        self._bytes_in += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID_HEADER] = self.request_id
            headers.setdefault("Cache-Control", "no-store")
        self._bytes_out += len(message.get("body", b""))
        await self._send(message)

    def record(self, metrics: Metrics) -> None:
        """Metrics and one line of the access log; nothing in it comes from the client unchecked."""
        seconds = time.perf_counter() - self._started
        method = self._scope["method"]
        method = method if method in METHODS else "OTHER"
        route = route_of(self._scope)
        status = CLIENT_CLOSED_REQUEST if self.status is None else self.status
        metrics.requests.labels(method, route, str(status)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        fields = {"method": method, "route": route, "status": status}
        if problem := self._state.get("problem"):
            metrics.problems.labels(problem).inc()
        for name in ("problem", "key_name", "trace_id"):
            if value := self._state.get(name):
                fields[name] = value
        fields |= {
            "bytes_in": self._bytes_in,
            "bytes_out": self._bytes_out,
            "ms": round(seconds * 1000, 1),
        }
        access_logger.info("request", extra=fields | self._state.get("log_fields", {}))


def request_id_of(given: str | None) -> str:
    """The client's X-Request-ID where it is a sound one, else one of our own."""
    if given is not None and VALID_REQUEST_ID.fullmatch(given):
        return given
    return own_request_id()


def own_request_id() -> str:
    """One that no other request has; nothing depends on its being hard to guess."""
    return f"{random.getrandbits(128):032x}"


def _header_bytes(scope: Scope) -> int:
    # Each header line also has ": " and a line end.
    headers = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    return headers + len(scope.get("raw_path") or b"") + len(scope["query_string"])
