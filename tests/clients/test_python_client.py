from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image
from pydantic import BaseModel

import lan_fer_client as package
from lan_fer_client import (
    AsyncClient,
    Client,
    ConnectionFailedError,
    PredictOptions,
    PredictReply,
    Problem,
    ProblemError,
    Retries,
    models,
)
from service import schemas
from tests.service.serving import RunningServer, Serve

QUICK = Retries(attempts=4, first_wait=0.001)
SHARED = [
    name
    for name in (
        *package.__all__,
        "BatchItem",
        "BatchReply",
        "FieldProblem",
        "NetworkInfo",
        "Status",
    )
    if hasattr(schemas, name)
]
# The service checks them; the client leaves that to it.
CHECKS = ("minimum", "maximum", "maxLength", "description", "examples", "title", "default")


@contextmanager
def connected(server: RunningServer) -> Iterator[Client]:
    with server.client() as http, Client(http=http) as client:
        yield client


def test_reads_and_draws(server: RunningServer, portrait_jpeg: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(portrait_jpeg)
    with connected(server) as client:
        assert client.is_ready()
        assert "happiness" in client.model().classifier.labels
        options = PredictOptions(explain="evidence", class_="anger", max_faces=3)
        for photo in (path, str(path), portrait_jpeg):
            (face,) = client.predict(photo, options).faces
            assert face.expression.label == "happiness"
            assert face.evidence is not None
            assert face.evidence.class_ == "anger"
        first, second = client.predict_batch([b"no photo", path])
        assert isinstance(first, Problem)
        assert first.status == 415
        assert isinstance(second, PredictReply)
        for media_type in ("image/jpeg", "image/png"):
            picture = client.draw(path, media_type=media_type)
            assert Image.open(BytesIO(picture)).size == (512, 512)


def test_async_client_does_the_same(server: RunningServer, portrait_jpeg: bytes) -> None:
    async def call() -> None:
        async with AsyncClient(server.url) as client:
            assert await client.is_ready()
            assert (await client.model()).detector.canvas_sizes
            replies = await asyncio.gather(*(client.predict(portrait_jpeg) for _ in range(3)))
            assert [len(reply.faces) for reply in replies] == [1, 1, 1]
            (answer,) = await client.predict_batch([portrait_jpeg])
            assert isinstance(answer, PredictReply)
            assert (await client.draw(portrait_jpeg)).startswith(b"\xff\xd8")
            with pytest.raises(ProblemError):
                await client.predict(b"no photo")

    asyncio.run(call())


def test_error_says_what_the_service_says(server: RunningServer) -> None:
    with connected(server) as client, pytest.raises(ProblemError) as caught:
        client.predict(b"no photo", PredictOptions(max_faces=0))
    assert caught.value.kind == "invalid-option"
    assert caught.value.problem.errors
    assert "max_faces" in str(caught.value)


def test_key_is_sent(serve: Serve) -> None:
    key = "0123456789abcdef"
    server = serve(api_keys=f"tester={key}")
    with Client(server.url, api_key=key) as client:
        assert client.model().classifier.name
    with Client(server.url) as client, pytest.raises(ProblemError) as caught:
        client.model()
    assert caught.value.kind == "missing-key"


def test_missing_file_is_the_callers_error() -> None:
    with Client() as client, pytest.raises(FileNotFoundError):
        client.predict("no-such.jpg")


def test_web_address_is_not_fetched() -> None:
    with Client() as client, pytest.raises(ValueError, match=r"http://x/y\.jpg: a web address"):
        client.predict("http://x/y.jpg")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("wrong", ["127.0.0.1:8000", "localhost:8000", "", "http://", "/lan-fer"])
def test_address_without_http_is_refused_at_once(
    kind: type[Client | AsyncClient], wrong: str
) -> None:
    with pytest.raises(ValueError, match=r"such as http://127\.0\.0\.1:8000, not") as caught:
        kind(wrong)
    assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize(
    "alone", ["photo.jpg", Path("photo.jpg"), b"photo", bytearray(b"photo"), memoryview(b"photo")]
)
def test_batch_of_one_photo_alone_is_refused(alone: str | Path | bytes) -> None:
    async def call() -> None:
        async with AsyncClient() as client:
            await client.predict_batch(alone)  # type: ignore[arg-type]

    with Client() as client, pytest.raises(TypeError, match="a list of photos, not one alone"):
        client.predict_batch(alone)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a list of photos, not one alone"):
        asyncio.run(call())


@pytest.mark.parametrize("name", SHARED)
def test_models_are_the_services(name: str) -> None:
    ours = getattr(models, name)
    theirs: type[BaseModel] = getattr(schemas, name)
    assert set(theirs.model_fields) - {"error"} == set(ours.model_fields)
    for field in ours.model_fields:
        if field != "contract":
            assert shape(ours, field) == shape(theirs, field), field


def shape(model: type[BaseModel], field: str) -> object:
    """The JSON type of a field, without what only the service checks."""
    alias = model.model_fields[field].alias or field
    schema = model.model_json_schema(by_alias=True)["properties"][alias]

    def bare(value: object) -> object:
        if isinstance(value, dict):
            return {key: bare(v) for key, v in value.items() if key not in CHECKS}
        return [bare(v) for v in value] if isinstance(value, list) else value

    return bare(schema)


# --- faults --------------------------------------------------------------------------------------

Answer = Callable[[BaseHTTPRequestHandler], None]


def reply(status: int, body: bytes = b"", **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def hang(seconds: float) -> Answer:
    def answer(_: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)

    return answer


def problem(status: int, **headers: str) -> Answer:
    body = {"type": "urn:problem-type:lan-fer:x", "title": "t", "status": status, "detail": "d"}
    return reply(status, json.dumps(body | {"request_id": "r"}).encode(), **headers)


READ = reply(200, json.dumps(schemas.EXAMPLE_REPLY).encode(), Content_Type="application/json")


@contextmanager
def faulty(*answers: Answer) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives these answers, one a request, and the bodies that it got."""
    queue, bodies = list(answers), list[bytes]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            queue.pop(0)(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", bodies
        finally:
            server.shutdown()
            thread.join()


def read_with(
    url: str, retries: Retries, *, asynchronous: bool, timeout: float = 30
) -> PredictReply:
    if not asynchronous:
        with Client(url, retries=retries, timeout=timeout) as client:
            return client.predict(b"photo")

    async def call() -> PredictReply:
        async with AsyncClient(url, retries=retries, timeout=timeout) as client:
            return await client.predict(b"photo")

    return asyncio.run(call())


both = pytest.mark.parametrize("asynchronous", [False, True])


@both
def test_what_passes_is_tried_again(asynchronous: bool) -> None:
    with faulty(problem(503), hang_up, reply(502, b"<html>"), READ) as (url, bodies):
        assert read_with(url, QUICK, asynchronous=asynchronous).faces_found == 1
    assert len(bodies) == 4
    assert all(b"photo" in body for body in bodies)


@both
def test_gives_up_with_the_last_error(asynchronous: bool) -> None:
    with faulty(hang_up, hang_up, hang_up, problem(429)) as (url, bodies):
        with pytest.raises(ProblemError) as caught:
            read_with(url, QUICK, asynchronous=asynchronous)
        assert caught.value.problem.status == 429
        assert len(bodies) == 4
    with pytest.raises(ConnectionFailedError):
        read_with(url, QUICK, asynchronous=asynchronous)


@both
@pytest.mark.parametrize("status", [400, 413, 500, 504])
def test_what_does_not_pass_is_not_tried_again(asynchronous: bool, status: int) -> None:
    with faulty(problem(status)) as (url, bodies):
        with pytest.raises(ProblemError) as caught:
            read_with(url, QUICK, asynchronous=asynchronous)
        assert caught.value.problem.status == status
        assert len(bodies) == 1


@both
def test_late_reply_is_not_asked_for_twice(asynchronous: bool) -> None:
    with faulty(hang(0.5)) as (url, bodies):
        with pytest.raises(ConnectionFailedError):
            read_with(url, QUICK, asynchronous=asynchronous, timeout=0.1)
        assert len(bodies) == 1


def test_proxys_page_becomes_a_problem() -> None:
    page = reply(502, b"<html>gateway</html>")
    with faulty(page) as (url, _), pytest.raises(ProblemError) as caught:
        read_with(url, Retries(attempts=1), asynchronous=False)
    assert caught.value.problem.title == "Bad Gateway"
    assert caught.value.problem.type == "about:blank"


def response(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers={k.replace("_", "-"): v for k, v in headers.items()})


def test_retry_after_is_honoured() -> None:
    retries = Retries(attempts=3, first_wait=1, longest_wait=30)
    assert retries.wait_after(1, response(429, retry_after="7")) == 7
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert retries.wait_after(1, response(503, retry_after=soon)) == pytest.approx(19.5, abs=1.5)
    past = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    assert retries.wait_after(1, response(503, retry_after=past)) == 0
    assert retries.wait_after(1, response(503, retry_after="31")) is None
    assert retries.wait_after(3, response(503, retry_after="1")) is None
    for unclear in ("soon", "", "Mon, 01 Jan 2024 00:00:00 +9999999999999999999"):
        wait = retries.wait_after(2, response(503, retry_after=unclear))
        assert wait is not None
        assert 1 <= wait <= 2


def test_waits_grow_and_end() -> None:
    retries = Retries(attempts=99, first_wait=1, longest_wait=8)
    waits = [retries.wait_after(n, httpx.ConnectError("no")) for n in range(1, 8)]
    for wait, most in zip(waits, (1, 2, 4, 8, 8, 8, 8), strict=True):
        assert wait is not None
        assert most / 2 <= wait <= most


def test_both_clients_offer_the_same() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(Client) == public(AsyncClient)
