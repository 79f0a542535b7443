"""POST /predict without options answers as with them, though FastAPI does not see it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.service.serving import RunningServer, Serve, assert_problem

JPEG = {"Content-Type": "image/jpeg"}
DEFAULT = "?explain=attention"
CHANGING_HEADERS = {"date", "x-request-id", "server-timing", "content-length"}


def headers_of(reply: httpx.Response) -> dict[str, str]:
    return {k: v for k, v in reply.headers.items() if k not in CHANGING_HEADERS}


def without_timings(document: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in document.items() if k not in ("request_id", "timings_ms")}


@pytest.mark.parametrize("accept", ["application/json", "image/png", "text/plain"])
@pytest.mark.parametrize("kind", ["photo", "broken photo", "no photo", "multipart"])
def test_answer_is_that_of_the_route(
    client: httpx.Client, portrait_jpeg: bytes, accept: str, kind: str
) -> None:
    body: dict[str, Any] = {"content": portrait_jpeg, "headers": JPEG | {"Accept": accept}}
    if kind == "broken photo":
        body["content"] = portrait_jpeg[:3000]
    elif kind == "no photo":
        body["content"] = b""
    elif kind == "multipart":
        body = {"files": {"file": portrait_jpeg}, "headers": {"Accept": accept}}
    short, long = (client.post(f"/predict{query}", **body) for query in ("", DEFAULT))
    assert short.status_code == long.status_code
    assert headers_of(short) == headers_of(long)
    if short.headers["content-type"] == "image/png":
        assert short.content == long.content
    else:
        assert without_timings(short.json()) == without_timings(long.json())


def test_it_counts_as_its_route(server: RunningServer, client: httpx.Client) -> None:
    def counted() -> float | None:
        return server.state.metrics.registry.get_sample_value(
            "lan_fer_http_requests_total",
            {"method": "POST", "route": "/predict", "status": "400"},
        )

    before = counted() or 0.0
    for query in ("", DEFAULT):
        assert client.post(f"/predict{query}", headers=JPEG).status_code == 400
    assert counted() == before + 2


def test_other_methods_paths_and_headers_go_to_the_app(
    client: httpx.Client, portrait_jpeg: bytes
) -> None:
    assert client.get("/predict").headers["allow"] == "POST"
    assert client.post("/predict/", content=portrait_jpeg, headers=JPEG).status_code != 200
    wrong = JPEG | {"X-Request-Timeout-Ms": "soon"}
    reply = client.post("/predict", content=portrait_jpeg, headers=wrong)
    assert_problem(reply, 422, "invalid-option")


def test_keys_are_asked_for(serve: Serve, portrait_jpeg: bytes) -> None:
    server = serve(api_keys="operations=" + "k" * 40)
    with server.client() as client:
        reply = client.post("/predict", content=portrait_jpeg, headers=JPEG)
        assert_problem(reply, 401, "missing-key")
        given = JPEG | {"X-API-Key": "k" * 40}
        assert client.post("/predict", content=portrait_jpeg, headers=given).status_code == 200
