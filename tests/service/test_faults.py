from __future__ import annotations

import logging
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import pytest

from service.pipeline import Pipeline, Recognition
from service.replies import ReplyWriter
from service.server import let_nobody_else_in, listen
from tests.service.holding import JPEG, Crowd, HeldDetector, grey_photo, raw_request, read_all
from tests.service.serving import (
    PATIENCE_SECONDS,
    RunningServer,
    Serve,
    assert_problem,
    wait_until,
)

LIVE = b"GET /health/ready HTTP/1.1\r\nHost: here\r\n\r\n"


# --- a stage that hangs -------------------------------------------------------------------------


def test_stage_that_hangs_turns_readiness_off_until_it_goes_on(
    serve_held: Callable[..., RunningServer],
    held: HeldDetector,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve_held(stage_limit_ms=500)
    ready = server.state.metrics.registry.get_sample_value
    stuck = Crowd(server).post(grey_photo(10))
    wait_until(lambda: ready("lan_fer_ready") == 0)
    with server.client() as client:
        response = client.get("/health/ready")
        assert "hangs" in assert_problem(response, 503, "unavailable")
        assert int(response.headers["retry-after"]) > 0
        assert client.get("/health/live").status_code == 200
        assert_problem(client.post("/predict", content=b"x"), 503, "unavailable")
        held.gate.set()
        assert stuck().status_code == 200
        wait_until(lambda: ready("lan_fer_ready") == 1)
        assert client.get("/health/ready").status_code == 200
    messages = [r.getMessage() for r in caplog.records if r.name == "service.lifecycle"]
    # A slow machine may take long for the batch itself.
    assert messages[:2] == [
        "not ready: the stage 'detector' hangs",
        "ready again; it was not: the stage 'detector' hangs",
    ]
    levels = [r.levelno for r in caplog.records if r.name == "service.lifecycle"]
    assert levels[:2] == [logging.CRITICAL, logging.WARNING]


def test_waiting_for_a_batch_is_not_hanging(
    serve_held: Callable[..., RunningServer], held: HeldDetector
) -> None:
    server = serve_held()
    answers = [Crowd(server).post(grey_photo(n)) for n in (1, 2, 3)]
    held.wait_until_entered()
    held.gate.set()
    assert {answer().status_code for answer in answers} == {200}
    with server.client() as client:
        assert client.get("/health/ready").status_code == 200


# --- stopping -----------------------------------------------------------------------------------


def test_request_on_an_open_connection_is_answered_while_stopping(serve: Serve) -> None:
    server = serve()
    with socket.create_connection(server.address, timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(LIVE)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        server.terminate()
        connection.sendall(LIVE)
        reply = read_all(connection)
    assert reply.startswith("HTTP/1.1 503 ")


def test_idle_connection_ends_cleanly_at_the_stop(serve: Serve) -> None:
    server = serve()
    with socket.create_connection(server.address, timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(LIVE)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        server.terminate()
        assert connection.recv(1) == b""  # an end, not a reset
    server.thread.join(PATIENCE_SECONDS)
    assert not server.thread.is_alive()


def stop_the_event_loop(server: RunningServer) -> threading.Event:
    """It stands still until the event is set."""
    assert isinstance(server.state.reader, Pipeline)
    loop = server.state.reader._detector._loop
    assert loop is not None
    busy, go_on = threading.Event(), threading.Event()
    ours, theirs = socket.socketpair()

    def stand_still() -> None:
        loop.remove_reader(theirs)
        with ours, theirs:
            busy.set()
            go_on.wait(PATIENCE_SECONDS)

    # While it reads: timers come before the next reading then.
    loop.call_soon_threadsafe(loop.add_reader, theirs, stand_still)
    ours.send(b"now")
    assert busy.wait(PATIENCE_SECONDS)
    return go_on


def test_process_that_stood_still_reads_what_came_in_time(serve: Serve) -> None:
    server = serve(idle_timeout_ms=500)
    with socket.create_connection(server.address, timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(LIVE)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        go_on = stop_the_event_loop(server)
        connection.sendall(LIVE)
        time.sleep(0.6)  # past the connection's deadline
        go_on.set()
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_client_that_has_connected_before_the_stop_is_answered(
    serve_held: Callable[..., RunningServer], held: HeldDetector
) -> None:
    server = serve_held()
    go_on = stop_the_event_loop(server)
    # The event loop stands still: the kernel takes the connections, the server does not know yet.
    photo = grey_photo(10)
    clients = [raw_request(server, [f"Content-Length: {len(photo)}"], photo) for _ in range(20)]
    server.terminate()
    go_on.set()
    for connection in clients:
        with connection:
            reply = read_all(connection)
        assert re.match("HTTP/1.1 (200|503) ", reply)


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
def test_who_comes_after_the_stop_is_kept_away_and_who_was_there_is_not() -> None:
    listener = listen("127.0.0.1", 0)
    listener.listen()
    address = listener.getsockname()
    with listener, socket.create_connection(address) as early, socket.socket() as late:
        let_nobody_else_in(listener)
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.connect(address)
        accepted, _ = listener.accept()
        with accepted:
            early.sendall(b"a question")
            assert accepted.recv(100) == b"a question"
            accepted.sendall(b"an answer")
            assert early.recv(100) == b"an answer"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_request_that_outlives_the_grace_period_still_gets_an_answer(
    serve_held: Callable[..., RunningServer],
    held: HeldDetector,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve_held(drain_seconds=1)
    stuck = Crowd(server).post(grey_photo(10))
    held.wait_until_entered()
    server.terminate()
    assert_problem(stuck(), 503, "unavailable")
    # The network hangs on, and does not keep the process from ending.
    server.thread.join(PATIENCE_SECONDS)
    assert not server.thread.is_alive()
    assert "Exception in ASGI application" not in caplog.text


@dataclass
class Tally:
    """What became of every request."""

    answers: Counter[int] = field(default_factory=Counter)
    refused: int = 0
    """Could not connect: the server had stopped listening."""
    ended: int = 0
    """Met the clean end of a connection that had been kept open."""
    lost: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def keep_asking(self, server: RunningServer, photo: bytes, *, keep_open: bool) -> None:
        limits = httpx.Limits(max_keepalive_connections=1 if keep_open else 0)
        with httpx.Client(limits=limits, timeout=PATIENCE_SECONDS, trust_env=False) as client:
            while self.ask(client, server, photo, keep_open=keep_open):
                pass

    def ask(
        self, client: httpx.Client, server: RunningServer, photo: bytes, *, keep_open: bool
    ) -> bool:
        try:
            response = client.post(f"{server.url}/predict", content=photo, headers=JPEG)
        except httpx.TransportError as error:
            with self.lock:
                self.note(error, keep_open=keep_open)
            return False
        with self.lock:
            self.answers[response.status_code] += 1
        return True

    def note(self, error: httpx.TransportError, *, keep_open: bool) -> None:
        if isinstance(error, httpx.ConnectError):
            self.refused += 1
        elif isinstance(error, httpx.RemoteProtocolError) and keep_open:
            self.ended += 1
        else:
            self.lost.append(repr(error))


def requests_read(server: RunningServer) -> float:
    return sum(
        sample.value
        for metric in server.state.metrics.requests.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels["route"] == "/predict"
    )


def test_stop_under_load_loses_no_reply(serve: Serve) -> None:
    server = serve(max_in_flight_images=8)
    tally, photo = Tally(), grey_photo(10)
    with ThreadPoolExecutor(16) as crowd:
        for number in range(16):
            crowd.submit(tally.keep_asking, server, photo, keep_open=number % 2 == 0)
        try:
            wait_until(lambda: tally.answers[200] >= 10)
        finally:
            server.terminate()
    server.thread.join(PATIENCE_SECONDS)
    assert not server.thread.is_alive()
    assert tally.lost == []
    assert set(tally.answers) <= {200, 429, 503}
    assert tally.refused + tally.ended == 16
    # Whatever the server has read, it has answered.
    assert requests_read(server) == tally.answers.total()


def test_writing_a_reply_that_hangs_is_noticed_too(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, portrait_jpeg: bytes
) -> None:
    entered, gate = threading.Event(), threading.Event()
    write = ReplyWriter.json

    def held(writer: ReplyWriter, recognition: Recognition) -> str:
        entered.set()
        assert gate.wait(PATIENCE_SECONDS)
        return write(writer, recognition)

    monkeypatch.setattr(ReplyWriter, "json", held)
    server = serve(stage_limit_ms=500)
    ready = server.state.metrics.registry.get_sample_value
    stuck = Crowd(server).post(portrait_jpeg)
    assert entered.wait(PATIENCE_SECONDS)
    wait_until(lambda: ready("lan_fer_ready") == 0)
    gate.set()
    assert stuck().status_code == 200
    wait_until(lambda: ready("lan_fer_ready") == 1)


def test_nothing_is_written_for_a_client_that_is_gone(
    serve_held: Callable[..., RunningServer],
    held: HeldDetector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[Recognition] = []
    write = ReplyWriter.json

    def noted(writer: ReplyWriter, recognition: Recognition) -> str:
        written.append(recognition)
        return write(writer, recognition)

    monkeypatch.setattr(ReplyWriter, "json", noted)
    crowd = Crowd(serve_held())
    late = crowd.post(grey_photo(10), **{"X-Request-Timeout-Ms": "100"})
    held.wait_until_entered()
    assert_problem(late(), 504, "deadline-exceeded")
    held.gate.set()
    assert crowd.post(grey_photo(20, side=80))().status_code == 200
    assert [recognition.image.size for recognition in written] == [(80, 80)]
