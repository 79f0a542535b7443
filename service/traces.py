"""Traces by OpenTelemetry, where a setting asks for them: a span for each request.

A caller's `traceparent` makes it part of the caller's trace. Where spans go, how many are kept and
what the service is called there is told by OpenTelemetry's own variables (OTEL_*). The packages are
the extra `otel`; without it nothing here is imported.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import SettingsError
from service.route_names import route_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

# Asked every few seconds, and of no interest.
EXCLUDED = re.compile(r"/health/|/v2/health/|/metrics\Z")
# Of headers that it can't read, it warns with what the client has sent.
PARSER = "opentelemetry.trace"
AS_SENT = "lan_fer.as_sent"
STOP_SECONDS = 2.0
DEFAULT_NAME = "lan-fer"
DESCRIBING = ("request_id", "problem", "key_name")


def make_exporter() -> SpanExporter:
    """Sends spans by OTLP over HTTP."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def add_traces(app: FastAPI) -> TracerProvider:
    """Trace the requests of `app`. Raises SettingsError where the packages are not installed.

    The spans that are still held are sent by `stop_traces`.
    """
    try:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before our name.
        named = Resource.create({SERVICE_NAME: DEFAULT_NAME})
        resource = named.merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(make_exporter()))
        _read_traceparent_alone()
    except ImportError as error:
        raise SettingsError(
            f"traces: {error.name} is not installed; in a checkout: pip install -e '.[otel]'"
        ) from error
    except ValueError as error:  # of a variable OTEL_*
        raise SettingsError(f"traces: OpenTelemetry cannot be set up: {error}") from error
    # The one added last is the outer one: it opens the span that the other one describes.
    app.add_middleware(_DescribeSpan)
    app.add_middleware(
        _OpenSpan,
        trace=partial(
            OpenTelemetryMiddleware, tracer_provider=provider, exclude_spans=["receive", "send"]
        ),
    )
    return provider


def _read_traceparent_alone() -> None:
    """Of a request's headers; baggage is passed on to nobody, and is a stranger's text."""
    from opentelemetry.propagate import set_global_textmap
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    set_global_textmap(TraceContextTextMapPropagator())
    logging.getLogger(PARSER).setLevel(logging.ERROR)


async def stop_traces(provider: TracerProvider) -> None:
    """Send what is held; a collector that does not answer must not hold up the stop for long."""
    thread = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, STOP_SECONDS)


class _OpenSpan:
    """Opens a span for each request but those that are excluded, by OpenTelemetry's middleware.

    That one never sees the address as it was sent: a query may hold a key by mistake.
    """

    def __init__(self, app: ASGIApp, trace: Callable[[ASGIApp], ASGIApp]) -> None:
        async def with_address(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope[AS_SENT], receive, send)

        self._app = app
        self._traced = trace(with_address)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or EXCLUDED.match(scope["path"]):
            await self._app(scope, receive, send)
            return
        shown = {**scope, "path": "", "query_string": b"", AS_SENT: scope}
        await self._traced(shown, receive, send)


class _DescribeSpan:
    """Gives the span its route for a name, and what the access log tells of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from opentelemetry import trace

        span = trace.get_current_span()
        if not span.is_recording():
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["trace_id"] = trace.format_trace_id(span.get_span_context().trace_id)

        async def send_described(message: Message) -> None:
            # The span ends with the reply's last byte, so it is described at its first.
            if message["type"] == "http.response.start":
                _describe(span, scope, state)
            await send(message)

        await self._app(scope, receive, send_described)


def _describe(span: Span, scope: Scope, state: Mapping[str, Any]) -> None:
    # Never the path as it was sent: a name stands for many requests.
    route = route_of(scope)
    span.update_name(f"{scope['method']} {route}")
    span.set_attribute("http.route", route)
    fields = {name: state[name] for name in DESCRIBING if name in state}
    for name, value in {**fields, **state.get("log_fields", {})}.items():
        span.set_attribute(f"lan_fer.{name}", value)
