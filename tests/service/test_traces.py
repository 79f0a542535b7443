"""Traces: off unless asked for, part of the caller's, and without anything of the photo."""

from __future__ import annotations

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
