"""Traces: off unless asked for, part of the caller's, and without anything of the photo."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service import traces
from service.app import create_app
from service.errors import SettingsError
from service.pipeline import Networks
from service.settings import Settings
from tests.service.serving import RunningServer, running

JPEG = {"content-type": "image/jpeg"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    memory = InMemorySpanExporter()
    monkeypatch.setattr(traces, "make_exporter", lambda: memory)
    return memory


@pytest.fixture
def traced(exporter: InMemorySpanExporter, networks: Networks) -> Iterator[RunningServer]:
    with running(Settings(traces="otlp", api_keys="app=key-0123456789abcdef"), networks) as server:
        yield server


def stop(server: RunningServer) -> None:
    """The stop sends what is still held."""
    server.terminate()
    server.thread.join(60)


def attributes(span: ReadableSpan) -> dict[str, object]:
    assert span.attributes is not None
    return dict(span.attributes)


def test_a_request_is_part_of_its_callers_trace(
    traced: RunningServer, exporter: InMemorySpanExporter, portrait_jpeg: bytes
) -> None:
    headers = {
        **JPEG,
        "X-API-Key": "key-0123456789abcdef",
        "traceparent": f"00-{TRACE}-{PARENT}-01",
    }
    with traced.client() as client:
        reply = client.post("/predict?max_faces=3", content=portrait_jpeg, headers=headers)
        client.post("/predict", headers=JPEG)
        client.get("/no/such/path")
        client.get("/health/ready")
        client.get("/metrics")
    stop(traced)
    read, refused, lost = exporter.get_finished_spans()
    assert (read.name, refused.name, lost.name) == (
        "POST /predict",
        "POST /predict",
        "GET unmatched",
    )
    context = read.context
    assert context is not None
    assert f"{context.trace_id:032x}" == TRACE
    assert read.parent is not None
    assert f"{read.parent.span_id:016x}" == PARENT
    assert refused.parent is None
    told = attributes(read)
    assert told["lan_fer.request_id"] == reply.headers["x-request-id"]
    assert told["lan_fer.faces"] == 1
    assert told["lan_fer.key_name"] == "app"
    assert {f"lan_fer.{stage}_ms" for stage in ("decode", "detect", "classify", "queue")} <= set(
        told
    )
    assert attributes(refused)["lan_fer.problem"] == "missing-key"
    assert read.resource.attributes["service.name"] == "lan-fer"
    everything = "".join(span.to_json() for span in (read, refused, lost))
    assert "key-0123456789abcdef" not in everything


def test_a_trace_that_the_caller_does_not_keep_is_not_kept(
    traced: RunningServer, exporter: InMemorySpanExporter
) -> None:
    with traced.client() as client:
        client.get("/model", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    stop(traced)
    assert not exporter.get_finished_spans()


def test_off_by_default_and_then_not_even_imported() -> None:
    # FastAPI itself imports the interface where it is installed; only the SDK does anything.
    code = (
        "import sys; from service.app import create_app; from service.settings import Settings\n"
        "create_app(Settings()); print('opentelemetry.sdk.trace' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_without_the_packages_the_start_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.asgi", None)
    with pytest.raises(SettingsError, match=r"\.\[otel\]"):
        create_app(Settings(traces="otlp"))


def test_of_the_address_a_span_tells_the_route_alone(
    traced: RunningServer, exporter: InMemorySpanExporter
) -> None:
    """Neither a query, which may hold a key by mistake, nor a Host that looks like another path."""
    key = "key-0123456789abcdef"
    with traced.client() as client:
        client.get(f"/model?api_key={key}")
        client.get("/model", headers={"Host": "x/health/", "X-API-Key": key})
        client.get("/v2/health/live")
    stop(traced)
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["GET /model", "GET /model"]
    assert key not in "".join(span.to_json() for span in spans)


@pytest.mark.parametrize(
    "headers",
    [
        {"baggage": "ssn=123-45-6789;api=012"},
        {"baggage": "=," * 100},
        {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "strangers text"},
    ],
)
def test_a_header_that_cannot_be_read_is_not_logged(
    traced: RunningServer, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
) -> None:
    with traced.client() as client:
        assert client.get("/nope", headers=headers).status_code == 404
    assert [r.name for r in caplog.records if r.name.startswith("opentelemetry")] == []


@pytest.mark.parametrize(
    "variable",
    ["OTEL_BSP_MAX_QUEUE_SIZE=0", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=-1"],
)
def test_what_opentelemetry_refuses_is_said_in_one_line(variable: str) -> None:
    name, _, value = variable.partition("=")
    environment = {**os.environ, "LAN_FER_TRACES": "otlp", "LAN_FER_PORT": "0", name: value}
    run = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert "traces: OpenTelemetry cannot be set up" in line
