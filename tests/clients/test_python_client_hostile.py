"""What the Python client makes of a server that is not ours, or not well: typed errors, in time."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from lan_fer_client import (
    AsyncClient,
    BadReplyError,
    Client,
    ConnectionFailedError,
    ProblemError,
    Retries,
)
from lan_fer_client.replies import MAX_JSON_BYTES, MAX_JSON_PARTS
from service import schemas

TIMEOUT = 0.3  # seconds; what is late takes several times as long, and then would be right
PAUSE = 0.05
PAUSES = 20
JSON = "Content-Type: application/json"
HTML = "Content-Type: text/html"
PROBLEM = "Content-Type: application/problem+json"
BODY = json.dumps(schemas.EXAMPLE_REPLY).encode()
ESCAPES = "\x1b]0;title\x07\x1b[31m\u202ered\r\n"

Script = Callable[[socket.socket], Iterator[bytes]]
"""Pieces to send; after each that is empty, the server pauses."""


def asked(connection: socket.socket) -> bytes:
    """Reads a whole request. Returns its head."""
    with connection.makefile("rb") as file:
        head = b"".join(iter(file.readline, b"\r\n"))
        for line in head.splitlines():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                file.read(int(value))
    return head


def reply(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = (f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def at_once(answer: bytes) -> Script:
    def script(connection: socket.socket) -> Iterator[bytes]:
        asked(connection)
        yield answer

    return script


@contextmanager
def served(script: Script) -> Iterator[tuple[str, list[None]]]:
    """A server of nothing but sockets: its address, and an item for each connection it had."""
    over, connections = threading.Event(), list[None]()

    def talk(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            for piece in script(connection):
                if piece:
                    connection.sendall(piece)
                elif over.wait(PAUSE):
                    break

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(None)
                threads.append(threading.Thread(target=talk, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = [threading.Thread(target=accept)]
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def call(
    url: str,
    method: str = "predict",
    *arguments: object,
    asynchronous: bool,
    timeout: float = 30,
    attempts: int = 1,
) -> object:
    retries = Retries(attempts=attempts, first_wait=0.001)
    if not asynchronous:
        with Client(url, api_key="secret", timeout=timeout, retries=retries) as client:
            return getattr(client, method)(*arguments)

    async def wait() -> object:
        async with AsyncClient(url, api_key="secret", timeout=timeout, retries=retries) as client:
            return await getattr(client, method)(*arguments)

    return asyncio.run(wait())


both = pytest.mark.parametrize("asynchronous", [False, True])


# --- late, or too long ---------------------------------------------------------------------------


def slow_body(connection: socket.socket) -> Iterator[bytes]:
    asked(connection)
    answer = reply("200 OK", JSON, body=b" " * PAUSES + BODY)
    yield answer[: -len(BODY) - PAUSES]
    for _ in range(PAUSES):
        yield b" "
        yield b""
    yield BODY


def slow_head(connection: socket.socket) -> Iterator[bytes]:
    asked(connection)
    yield b"HTTP/1.1 200 OK\r\nX: "
    for _ in range(PAUSES):
        yield b"x"
        yield b""
    yield b"\r\n" + reply("200 OK", JSON, body=BODY).partition(b"\r\n")[2]


def many_heads(connection: socket.socket) -> Iterator[bytes]:
    asked(connection)
    for _ in range(PAUSES):
        yield b"HTTP/1.1 103 Early Hints\r\n\r\n"
        yield b""
    yield reply("200 OK", JSON, body=BODY)


def slow_reader(connection: socket.socket) -> Iterator[bytes]:
    # Fast enough that no single write of the client is late, nor a read after it.
    connection.settimeout(PAUSE)
    with suppress(TimeoutError):
        while connection.recv(512 * 1024):
            yield b"HTTP/1.1 103 Early Hints\r\n\r\n"
            yield b""
    yield reply("200 OK", JSON, body=BODY)


@both
@pytest.mark.parametrize("script", [slow_body, slow_head, many_heads, slow_reader])
def test_timeout_bounds_the_whole_attempt(script: Script, asynchronous: bool) -> None:
    photo = bytes(16 * 1024 * 1024 if script is slow_reader else 1)
    with served(script) as (url, connections):
        with pytest.raises(ConnectionFailedError):
            call(url, "predict", photo, asynchronous=asynchronous, timeout=TIMEOUT, attempts=3)
        assert len(connections) == 1  # it would be late a second time, too


@both
def test_reply_without_end_is_not_kept(asynchronous: bool) -> None:
    answer = reply("200 OK", JSON, body=b" " * MAX_JSON_BYTES + BODY)
    with served(at_once(answer)) as (url, connections):
        with pytest.raises(ConnectionFailedError, match="more than 64 MiB"):
            call(url, "predict", b"photo", asynchronous=asynchronous, attempts=3)
        assert len(connections) == 1


@both
def test_reply_broken_off_is_asked_for_again(asynchronous: bool) -> None:
    answer = reply("200 OK", JSON, body=BODY)[:-1]
    with served(at_once(answer)) as (url, connections):
        with pytest.raises(ConnectionFailedError, match="complete"):
            call(url, "predict", b"photo", asynchronous=asynchronous, attempts=3)
        assert len(connections) == 3


# --- not the service's ---------------------------------------------------------------------------


BAD = {
    "html": reply("200 OK", HTML, body=b"<html>login</html>"),
    "cut": reply("200 OK", JSON, body=BODY[:30]),
    "empty": reply("200 OK", JSON),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "null": reply("200 OK", JSON, body=b"null"),
    "nan": reply("200 OK", JSON, body=b'{"faces": NaN}'),
    "wrong": reply("200 OK", JSON, body=b'{"faces": "x"}'),
    "deep": reply("200 OK", JSON, body=b"[" * 100_000),
    "many": reply("200 OK", JSON, body=b'{"x":[' + b"0," * MAX_JSON_PARTS + b"0]," + BODY[1:]),
    "gzip": reply("200 OK", JSON, "Content-Encoding: gzip", body=gzip.compress(BODY)),
    "no-gzip": reply("200 OK", JSON, "Content-Encoding: gzip", body=b"no gzip"),
    "unknown": reply("200 OK", JSON, "Content-Encoding: zorp", body=BODY),
}


@both
@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
def test_reply_that_is_not_the_services_says_so(answer: bytes, asynchronous: bool) -> None:
    with served(at_once(answer)) as (url, _), pytest.raises(BadReplyError) as caught:
        call(url, "predict", b"photo", asynchronous=asynchronous)
    assert caught.value.status == int(answer.split()[1])
    assert len(str(caught.value)) < 500


@both
@pytest.mark.parametrize(
    ("method", "photo"), [("draw", b"photo"), ("is_ready", None), ("model", None)]
)
def test_login_page_is_no_answer(method: str, photo: bytes | None, asynchronous: bool) -> None:
    page = at_once(reply("200 OK", HTML, body=b"<html>login</html>"))
    arguments = () if photo is None else (photo,)
    with (
        served(page) as (url, _),
        pytest.raises(BadReplyError, match=r"text/html.*login") as caught,
    ):
        call(url, method, *arguments, asynchronous=asynchronous)
    assert caught.value.content_type == "text/html"


@both
@pytest.mark.parametrize("results", [[], [{"status": 200, "reply": None, "problem": None}]])
def test_batch_has_an_answer_for_each_photo(results: list[object], asynchronous: bool) -> None:
    body = json.dumps({"request_id": "r", "results": results}).encode()
    script = at_once(reply("200 OK", JSON, body=body))
    with served(script) as (url, _), pytest.raises(BadReplyError, match="0 answers for 1 photos"):
        call(url, "predict_batch", [b"photo"], asynchronous=asynchronous)


ERRORS = {
    "520 Web Server: sorry": reply("520 Web Server", HTML, body=b"sorry"),
    "599 X: ": reply("599 X"),
    "999 Unknown Error: ": reply("999 "),
    '422 X: {"type":': reply("422 X", PROBLEM, body=b'{"type":'),
    "422 X: null": reply("422 X", PROBLEM, body=b"null"),
    '422 X: {"type": 5}': reply("422 X", PROBLEM, body=b'{"type": 5}'),
    "500 X: ": reply("500 X", "Content-Encoding: gzip", body=b"no gzip"),
}


@both
@pytest.mark.parametrize(("said", "answer"), ERRORS.items(), ids=ERRORS)
def test_every_error_is_a_problem(said: str, answer: bytes, asynchronous: bool) -> None:
    with served(at_once(answer)) as (url, _), pytest.raises(ProblemError) as caught:
        call(url, "predict", b"photo", asynchronous=asynchronous)
    assert str(caught.value) == said
    assert caught.value.problem.type == "about:blank"


@both
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed(status: int, asynchronous: bool) -> None:
    with served(at_once(reply("200 OK", JSON, body=BODY))) as (elsewhere, visits):
        answer = reply(f"{status} Moved", f"Location: {elsewhere}/predict")
        with served(at_once(answer)) as (url, _), pytest.raises(ProblemError) as caught:
            call(url, "predict", b"photo", asynchronous=asynchronous)
    assert "redirects are not followed" in str(caught.value)
    assert f"{elsewhere}/predict" in str(caught.value)
    assert not visits


@both
def test_redirect_to_what_is_no_address_is_no_reply(asynchronous: bool) -> None:
    answer = reply("302 Found", "Location: data:application/json,{}")
    with served(at_once(answer)) as (url, _), pytest.raises(ConnectionFailedError) as caught:
        call(url, "predict", b"photo", asynchronous=asynchronous)
    assert "redirects to one that is none" in str(caught.value)


@pytest.mark.parametrize("content_type", ["text/plain", "application/problem+json"])
def test_message_holds_nothing_that_a_terminal_acts_upon(content_type: str) -> None:
    said = {"type": "x", "title": "t", "status": 400, "request_id": "", "detail": ESCAPES * 1000}
    foreign = content_type == "text/plain"
    body = ESCAPES.encode() if foreign else json.dumps(said).encode()
    answer = reply("400 X", f"Content-Type: {content_type}", body=body)
    with served(at_once(answer)) as (url, _), pytest.raises(ProblemError) as caught:
        call(url, "predict", b"photo", asynchronous=False)
    assert str(caught.value).isprintable()
    assert r"\x1b[31m\u202ered\r\n" in str(caught.value)
    assert len(str(caught.value)) < 8000
    assert caught.value.problem.detail.isprintable() is foreign


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have 127.0.0.1 alone")
def test_addresses_of_a_name_have_the_time_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three that take no more connections: the queue of each is full."""
    addresses = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
    with ExitStack() as stack:
        first = stack.enter_context(socket.socket())
        first.bind((addresses[0], 0))
        port = first.getsockname()[1]
        for address in addresses:
            full = first if address == addresses[0] else stack.enter_context(socket.socket())
            if full is not first:
                full.bind((address, port))
            full.listen(0)
            for _ in range(3):
                waits = stack.enter_context(socket.socket())
                waits.setblocking(False)
                waits.connect_ex((address, port))

        def found(host: str, *_: object, **__: object) -> list[Any]:
            named = addresses if host == "many.test" else (host,)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in named]

        monkeypatch.setattr(socket, "getaddrinfo", found)
        started = time.monotonic()
        with (
            Client(f"http://many.test:{port}", timeout=1, retries=Retries(attempts=1)) as client,
            pytest.raises(ConnectionFailedError),
        ):
            client.model()
        assert 0.9 < time.monotonic() - started < 2
