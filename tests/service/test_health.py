from __future__ import annotations

import re
import threading
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.errors import StartupError, UnavailableError
from service.pipeline import Networks
from service.problems import MEDIA_TYPE
from service.routes.docs import STATIC
from service.settings import Settings
from service.state import ServiceState
from tests.service.serving import (
    PATIENCE_SECONDS,
    Serve,
    assert_problem,
    running,
    starting,
    wait_until,
)

JPEG = {"content-type": "image/jpeg"}


def sample(client: httpx.Client, metric: str, /, **labels: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return sum(
        s.value
        for family in families
        for s in family.samples
        if s.name == metric and labels.items() <= s.labels.items()
    )


def test_live_and_ready(client: httpx.Client) -> None:
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready"}


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/model"])
def test_head_is_answered_like_get_without_a_body(client: httpx.Client, path: str) -> None:
    response = client.head(path)
    assert (response.status_code, response.content) == (200, b"")


def test_alive_but_not_ready_until_warmed_up(networks: Networks, portrait_jpeg: bytes) -> None:
    release, started = threading.Event(), threading.Event()

    def slow_load(_: Settings) -> Networks:
        assert release.wait(PATIENCE_SECONDS)
        return networks

    with (
        starting(Settings(), slow_load, lambda _: started.set()) as server,
        server.client() as client,
    ):
        assert client.get("/health/live").status_code == 200
        for response in (
            client.get("/health/ready"),
            client.get("/model"),
            client.post("/predict", content=portrait_jpeg, headers=JPEG),
        ):
            assert_problem(response, 503, "unavailable")
            assert int(response.headers["retry-after"]) >= 1
        assert sample(client, "lan_fer_ready") == 0
        release.set()
        assert started.wait(PATIENCE_SECONDS)
        assert client.get("/health/ready").status_code == 200
        assert sample(client, "lan_fer_ready") == 1


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (StartupError("no such model"), "no such model"),
        (ZeroDivisionError("oh"), "unexpected error while starting: oh"),
    ],
)
def test_start_that_fails_is_reported_and_never_ready(error: Exception, detail: str) -> None:
    reported: list[StartupError | None] = []

    def fail(_: Settings) -> Networks:
        raise error

    with starting(Settings(), fail, reported.append) as server, server.client() as client:
        wait_until(lambda: bool(reported))
        assert_problem(client.get("/health/ready"), 503, "unavailable")
    assert [str(failure) for failure in reported] == [detail]


def test_not_ready_while_draining(serve: Serve) -> None:
    server = serve()
    with server.client() as client:
        client.get("/health/live")  # the connection is open before the server stops listening
        server.state.lifecycle.drain()
        assert_problem(client.get("/health/ready"), 503, "unavailable")
        assert client.get("/health/live").status_code == 200


def test_model_tells_what_is_served(client: httpx.Client, networks: Networks) -> None:
    model = client.get("/model").json()
    classifier, detector = model["classifier"], model["detector"]
    assert classifier["labels"] == list(networks.classifier.contract.labels)
    assert classifier["contract"]["input_size"] == networks.classifier.contract.input_size
    assert classifier["licence"]
    for network in (classifier, detector):
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", network["version"])
        assert network["provider"] in networks.classifier.providers + networks.detector.providers
    assert [320, 320] in detector["canvas_sizes"]


def test_every_path_of_the_documentation_is_counted_by_its_route(networks: Networks) -> None:
    with running(Settings(), networks) as server, server.client() as client:
        for path in ("/docs", "/openapi.json", f"{STATIC}/favicon.png", f"{STATIC}/swagger-ui.css"):
            assert client.get(path).status_code == 200
        assert client.get(f"{STATIC}/none.css").status_code == 404
        assert client.post("/openapi.json").status_code == 405
        count = "lan_fer_http_requests_total"
        assert sample(client, count, route="/docs", status="200") == 1
        assert sample(client, count, route="/openapi.json", status="200") == 1
        assert sample(client, count, route="/openapi.json", status="405") == 1
        assert sample(client, count, route=STATIC, status="200") == 2
        assert sample(client, count, route=STATIC, status="404") == 1
        assert 'route="unmatched"' not in client.get("/metrics").text


def test_metrics_count_what_happened(networks: Networks, portrait_jpeg: bytes) -> None:
    with running(Settings(), networks) as server, server.client() as client:
        client.post("/predict", content=portrait_jpeg, headers=JPEG)
        client.post("/predict", content=b"no image", headers=JPEG)
        client.get("/no/such/path")
        count = "lan_fer_http_requests_total"
        assert sample(client, count, route="/predict", status="200") == 1
        assert sample(client, count, route="/predict", status="415") == 1
        assert sample(client, count, route="unmatched", status="404") == 1
        assert sample(client, "lan_fer_problems_total", problem="unsupported-media-type") == 1
        assert sample(client, "lan_fer_faces_total") == 1
        assert sample(client, "lan_fer_batch_size_sum", network="detector") == 1
        assert sample(client, "lan_fer_batch_size_sum", network="classifier") == 1
        assert sample(client, "lan_fer_images_in_flight") == 0
        for stage in ("receive", "decode", "detect", "classify", "queue", "render", "total"):
            assert sample(client, "lan_fer_stage_duration_seconds_count", stage=stage) == 1
        assert sample(client, "lan_fer_model_info", name=networks.classifier.contract.name) == 1


def test_docs_need_no_internet(client: httpx.Client) -> None:
    page = client.get("/docs").text
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert links
    for link in links:
        assert link.startswith("/")
        assert client.get(link).status_code == 200


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_openapi_describes_every_error_as_a_problem_document(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for name, operation in operations(document):
        assert operation["summary"], name
        errors = {s: r for s, r in operation["responses"].items() if s >= "400"}
        assert {"400", "408", "431", "500", "503"} <= set(errors), name
        for response in errors.values():
            schema = response["content"][MEDIA_TYPE]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}, name
            assert list(response["content"]) == [MEDIA_TYPE]


def test_openapi_lists_every_status_of_predict(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    predict = document["paths"]["/predict"]["post"]
    expected = "200 400 406 408 413 415 422 429 431 500 503 504"
    assert " ".join(sorted(predict["responses"])) == expected
    for status in ("429", "503"):
        assert "Retry-After" in predict["responses"][status]["headers"]
    assert set(predict["requestBody"]["content"]) == {
        "multipart/form-data",
        "application/json",
        "image/jpeg",
        "image/png",
        "image/webp",
        "image/gif",
        "image/bmp",
        "image/tiff",
    }


def test_stop_during_the_start_wins() -> None:
    state = ServiceState(Settings())
    state.lifecycle.drain()
    state.lifecycle.become_ready()
    with pytest.raises(UnavailableError):
        state.lifecycle.require_ready()
    assert state.metrics.registry.get_sample_value("lan_fer_ready") == 0
    state.pool.shutdown()
