from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from PIL import Image

import service.connection as connection_module
import service.server as server_module
from service.pipeline import Networks
from service.settings import Settings
from tests.service.holding import Crowd, HeldDetector, grey_photo, raw_request, read_all
from tests.service.image_files import encoded
from tests.service.serving import (
    PATIENCE_SECONDS,
    RunningServer,
    Serve,
    assert_problem,
    wait_until,
)

LIVE = b"GET /health/live HTTP/1.1\r\nHost: here\r\n\r\n"


@contextmanager
def connected(server: RunningServer) -> Iterator[socket.socket]:
    with socket.create_connection(server.address, timeout=PATIENCE_SECONDS) as connection:
        yield connection


def open_connections(server: RunningServer) -> float:
    value = server.state.metrics.registry.get_sample_value("lan_fer_connections")
    assert value is not None
    return value


def refused(server: RunningServer, reason: str) -> float:
    value = server.state.metrics.registry.get_sample_value(
        "lan_fer_refused_connections_total", {"reason": reason}
    )
    return value or 0.0


def is_over(connection: socket.socket) -> bool:
    """Whether the server ended it, cleanly and without a word."""
    return connection.recv(1) == b""


# --- slow clients -------------------------------------------------------------------------------


def test_connection_that_says_nothing_is_closed(serve: Serve) -> None:
    with connected(serve(idle_timeout_ms=50)) as connection:
        assert is_over(connection)


def test_connection_without_another_request_is_closed(serve: Serve) -> None:
    with connected(serve(idle_timeout_ms=50)) as connection:
        connection.sendall(LIVE)
        assert read_all(connection).startswith("HTTP/1.1 200 OK")


def test_line_ends_do_not_keep_a_connection_open(serve: Serve) -> None:
    server = serve(idle_timeout_ms=100)
    with connected(server) as connection, suppress(ConnectionError):
        while open_connections(server) > 0:
            connection.sendall(b"\r\n")
            time.sleep(0.01)
    assert open_connections(server) == 0


def test_headers_that_dribble_are_cut_off(serve: Serve) -> None:
    server = serve(header_timeout_ms=100)
    with connected(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        connection.setblocking(False)
        reply = b""
        for _ in range(10_000):
            try:
                reply += connection.recv(65536)
                break
            except BlockingIOError:
                connection.sendall(b"y")
                time.sleep(0.01)
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b"problem-type:lan-fer:slow-request" in reply
    assert refused(server, "slow-request") == 1


@pytest.mark.parametrize("limit", ["body_timeout_ms", "stall_timeout_ms"])
def test_body_that_dribbles_is_408(serve: Serve, limit: str) -> None:
    limits: dict[str, Any] = {limit: 100}
    server = serve(**limits)
    with raw_request(server, ["Content-Length: 100000", "Connection: close"]) as connection:
        if limit == "body_timeout_ms":
            connection.sendall(b"\x89PNG")
        reply = read_all(connection)
    assert reply.startswith("HTTP/1.1 408 ")
    assert "problem-type:lan-fer:slow-request" in reply
    assert server.state.bodies.held == 0


@pytest.mark.parametrize(
    "more",
    [b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\nX: y\r\n"],
)
def test_a_refused_client_that_stays_is_closed_all_the_same(
    serve_held: Callable[..., RunningServer], held: HeldDetector, more: bytes
) -> None:
    """Also where its whole request came in one piece, with another one behind it."""
    server = serve_held(max_in_flight_images=1)
    first = Crowd(server).post(grey_photo(1))
    held.wait_until_entered()
    before = open_connections(server)
    head = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: 1\r\n" + more
    with connected(server) as connection:
        connection.sendall(head + b"\r\nx" + LIVE)
        assert connection.recv(65536).startswith(b"HTTP/1.1 429")
        wait_until(lambda: open_connections(server) == before)
    held.gate.set()
    assert first().status_code == 200


def photo_of_noise() -> bytes:
    """2 MB, and 7 as a PNG: more than what the kernel holds for two sockets."""
    noise = np.random.default_rng(0).integers(0, 256, (1600, 1600, 3), np.uint8)
    return encoded(Image.fromarray(noise), "JPEG", quality=75)


def test_client_that_does_not_read_its_reply_is_cut_off(serve: Serve) -> None:
    server = serve(stall_timeout_ms=300)
    photo = photo_of_noise()
    head = ["Accept: image/png", f"Content-Length: {len(photo)}"]
    with raw_request(server, head, photo, receive_bytes=4096):
        wait_until(lambda: refused(server, "slow-reader") == 1)
        wait_until(lambda: open_connections(server) == 0)


def test_replies_that_take_half_of_the_room_are_waited_for_less(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "CROWDED_STALL_SECONDS", 0.3)
    photo = photo_of_noise()
    server = serve(max_in_flight_bytes=16_000_000, stall_timeout_ms=3_600_000)
    head = ["Accept: image/png", f"Content-Length: {len(photo)}"]
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(raw_request(server, head, photo, receive_bytes=4096))
        wait_until(lambda: refused(server, "slow-reader") >= 1)


def test_a_picture_that_does_not_fit_beside_unread_ones_is_refused(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "CROWDED_STALL_SECONDS", 3600)
    photo = photo_of_noise()
    server = serve(max_in_flight_bytes=12_000_000)
    plain = {"Content-Type": "image/jpeg"}
    drawn = {**plain, "Accept": "image/png"}
    with server.client() as client:
        head = ["Accept: image/png", f"Content-Length: {len(photo)}"]
        with raw_request(server, head, photo, receive_bytes=4096) as unread:
            assert unread.recv(12) == b"HTTP/1.1 200"
            refusal = client.post("/predict", content=photo, headers=drawn)
            assert_problem(refusal, 429, "overloaded")
            assert client.post("/predict", content=photo, headers=plain).status_code == 200
        wait_until(lambda: open_connections(server) == 1)
        assert client.post("/predict", content=photo, headers=drawn).status_code == 200


# --- too many -----------------------------------------------------------------------------------


def test_idle_connections_make_way(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "IDLE_MAKES_WAY_SECONDS", 0.0)
    server = serve(max_connections=3)
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(server)) for _ in range(3)]
        wait_until(lambda: open_connections(server) == 3)
        newcomer = stack.enter_context(connected(server))
        newcomer.sendall(LIVE)
        assert newcomer.recv(65536).startswith(b"HTTP/1.1 200 OK")
        # One has gone; which, is a matter of chance where all came in the same millisecond.
        readable, _, _ = select.select(idle, [], [], PATIENCE_SECONDS)
        (gone,) = readable
        assert is_over(gone)
        for connection in set(idle) - {gone}:
            connection.sendall(LIVE)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")


def test_a_flood_of_connections_is_told_so(serve: Serve) -> None:
    server = serve(max_connections=4)
    with ExitStack() as stack:
        for _ in range(20):
            last = stack.enter_context(connected(server))
        assert last.recv(65536).startswith(b"HTTP/1.1 503 ")
    assert refused(server, "unavailable") >= 16


def test_connections_that_were_busy_a_moment_ago_do_not_make_way(serve: Serve) -> None:
    """Their next requests may be under way, and would meet a closed connection."""
    server = serve(max_connections=2)
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(server)) for _ in range(2)]
        wait_until(lambda: open_connections(server) == 2)
        newcomer = stack.enter_context(connected(server))
        assert read_all(newcomer).startswith("HTTP/1.1 503 ")
        for connection in idle:
            connection.sendall(LIVE)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")


def test_connections_that_are_served_do_not_make_way(serve: Serve, networks: Networks) -> None:
    held = HeldDetector(Settings())
    server = serve(Networks(held, networks.classifier), inference_workers=1, max_connections=2)
    crowd = Crowd(server)
    answers = [crowd.post(grey_photo(10)), crowd.post(grey_photo(20))]
    wait_until(lambda: server.state.lifecycle.in_flight == 2)
    with connected(server) as connection:
        reply = read_all(connection)
    assert reply.startswith("HTTP/1.1 503 ")
    assert "\r\nretry-after: 1\r\n" in reply
    held.gate.set()
    assert [answer().status_code for answer in answers] == [200, 200]


# --- bad HTTP -----------------------------------------------------------------------------------


def test_requests_sent_before_their_answers_are_answered_in_order(serve: Serve) -> None:
    server = serve()
    with connected(server) as connection:
        ready = LIVE.replace(b"live", b"ready")
        connection.sendall(
            LIVE + ready + LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
        reply = read_all(connection)
    assert reply.count("HTTP/1.1 200 OK") == 3
    assert [reply.index('"live"') < reply.index('"ready"'), reply.count('"live"')] == [True, 2]


def test_a_reply_without_a_body_comes_before_the_next(server: RunningServer) -> None:
    with connected(server) as connection:
        last = LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        connection.sendall(LIVE.replace(b"GET", b"HEAD") + last)
        reply = read_all(connection)
    assert reply.startswith("HTTP/1.1 200 OK\r\n")
    assert "\r\n\r\nHTTP/1.1 200 OK\r\n" in reply


def test_a_reply_arrives_in_one_piece(server: RunningServer) -> None:
    """Its head alone would wake the client for nothing."""
    with connected(server) as connection:
        connection.sendall(LIVE)
        assert connection.recv(65536).endswith(b"}")


def test_a_client_that_sends_no_more_gets_its_answer(server: RunningServer) -> None:
    for _ in range(20):
        with connected(server) as connection:
            connection.sendall(LIVE)
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection).startswith("HTTP/1.1 200 OK\r\n")


def test_flood_of_requests_before_their_answers_is_cut_off(server: RunningServer) -> None:
    with connected(server) as connection:
        connection.sendall(LIVE * 5000)
        reply = read_all(connection)
    # Those that were taken get their answers.
    assert reply.count("HTTP/1.1 200 OK") == 1 + connection_module.MAX_PIPELINED


def test_a_photo_too_many_before_their_answers_costs_none_of_the_others_theirs(
    server: RunningServer,
) -> None:
    photo = grey_photo(10)
    one = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n"
    one += b"Content-Length: %d\r\n\r\n" % len(photo) + photo
    with connected(server) as connection:
        connection.sendall(one * 40)
        reply = read_all(connection)
    assert reply.count("HTTP/1.1 200 OK") == 1 + connection_module.MAX_PIPELINED


# --- another protocol ---------------------------------------------------------------------------

UPGRADE = [
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAMAAABkAAQAAP__",
]


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_a_client_that_asks_for_another_protocol_gets_its_answer_in_this_one(
    server: RunningServer, portrait_jpeg: bytes, parts: int
) -> None:
    head = [*UPGRADE, "Content-Type: image/jpeg", f"Content-Length: {len(portrait_jpeg)}"]
    message = b"\r\n".join((b"POST /predict HTTP/1.1", b"Host: here", *map(str.encode, head)))
    message += b"\r\n\r\n" + portrait_jpeg
    # The next one, right behind it, is no part of it.
    message += LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with connected(server) as connection:
        for start in range(0, len(message), step := -(-len(message) // parts)):
            connection.sendall(message[start : start + step])
            time.sleep(0.02)
        reply = read_all(connection)
    assert reply.count("HTTP/1.1 200 OK") == 2
    assert '"faces_found":1' in reply


def test_a_body_behind_such_a_wish_is_no_request(server: RunningServer) -> None:
    hidden = b"GET /model HTTP/1.1\r\nHost: here\r\n\r\n"
    head = [*UPGRADE, "Content-Type: image/jpeg", f"Content-Length: {len(hidden)}"]
    with raw_request(server, [*head, "X-Request-ID: first"]) as connection:
        time.sleep(0.05)
        connection.sendall(hidden)
        connection.sendall(LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        reply = read_all(connection)
    assert reply.startswith("HTTP/1.1 415 ")
    assert reply.count("HTTP/1.1 ") == 2


def test_a_flood_of_such_wishes_is_cut_off(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Also where each is answered before the next is looked at, as photos too many are."""
    server = serve(max_in_flight_images=1)
    head = b"\r\n".join((b"POST /predict HTTP/1.1", b"Host: here", *map(str.encode, UPGRADE)))
    with server.state.lifecycle.admit_image(), connected(server) as connection:
        connection.sendall((head + b"\r\nContent-Length: 0\r\n\r\n") * 2500)
        reply = read_all(connection)
    assert 0 < reply.count("HTTP/1.1 429 ") <= connection_module.MAX_PIPELINED
    assert reply.count("HTTP/1.1 400 ") == 1
    assert not [record for record in caplog.records if record.exc_info]


def test_trailers_are_no_headers(server: RunningServer) -> None:
    """Those of one request would else be those of the next, which came with it."""
    chunked = (
        b"POST /predict HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\nx\r\n0\r\nX-Request-ID: from-trailer\r\nHost: another\r\n\r\n"
    )
    with connected(server) as connection:
        connection.sendall(chunked + LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        reply = read_all(connection)
    assert reply.count("HTTP/1.1 ") == 2
    assert reply.count("HTTP/1.1 200 OK") == 1
    assert "from-trailer" not in reply


# --- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /" + b"a" * 65_530, 431),
        (b"GET /" + b"a" * 70_000, 431),
        (b"CONNECT example.com:443", 400),
        (b"GET http://[::1", 400),
        (b"GET http://a:99999/x", 400),
        (b"POST http://a@b@c/predict", 400),
    ],
)
def test_an_address_that_can_not_be_read_gets_a_problem(
    server: RunningServer, caplog: pytest.LogCaptureFixture, line: bytes, status: int
) -> None:
    for is_first in (True, False):
        with connected(server) as connection:
            if not is_first:
                connection.sendall(LIVE)
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
            connection.sendall(line + b" HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
            reply = read_all(connection)
        assert reply.startswith(f"HTTP/1.1 {status} ")
        assert "problem-type:lan-fer:" in reply
    assert "Traceback" not in caplog.text


def test_nonsense_behind_a_good_request_does_not_cost_its_answer(server: RunningServer) -> None:
    with connected(server) as connection:
        connection.sendall(LIVE + b"\x00nonsense\r\n\r\n")
        reply = read_all(connection)
    assert reply.count("HTTP/1.1 ") == 1
    assert reply.startswith("HTTP/1.1 200 OK")


def test_body_in_chunks_of_one_byte_is_refused(server: RunningServer) -> None:
    head = ["Transfer-Encoding: chunked"]
    with raw_request(server, head, b"1\r\nx\r\n" * 500_000) as connection:
        reply = connection.recv(65536)
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"too small" in reply


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"HTTP/1.1", 400),
        (b"HTTP/1.1\r\nHost: here\r\nHost: there", 400),
        (b"HTTP/1.0", 200),
    ],
)
def test_a_request_says_once_which_host_it_is_for(
    server: RunningServer, head: bytes, status: int
) -> None:
    with connected(server) as connection:
        connection.sendall(b"GET /health/live " + head + b"\r\nConnection: close\r\n\r\n")
        assert read_all(connection).startswith(f"HTTP/1.1 {status} ")


def test_http_1_0_knows_neither_continue_nor_pieces(
    server: RunningServer, portrait_jpeg: bytes
) -> None:
    head = b"POST /predict HTTP/1.0\r\nContent-Type: image/jpeg\r\n"
    expects = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(portrait_jpeg)
    with connected(server) as connection:
        connection.sendall(head + expects + portrait_jpeg)
        assert read_all(connection).startswith("HTTP/1.1 200 ")
    with connected(server) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")
        reply = read_all(connection)
    assert reply.startswith("HTTP/1.1 400 ")
    assert "HTTP/1.0 has no Transfer-Encoding" in reply


def test_a_bad_head_behind_a_photo_leaves_the_photo_alone(
    server: RunningServer, portrait_jpeg: bytes
) -> None:
    head = [f"Content-Length: {len(portrait_jpeg)}"]
    bad = b"POST /predict HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"  # no host
    with raw_request(server, head, portrait_jpeg + bad) as connection:
        reply = read_all(connection)
    assert reply.startswith("HTTP/1.1 200 ")
    assert reply.count("HTTP/1.1 ") == 1
    assert '"faces_found":1' in reply


def test_a_coding_that_is_not_undone_is_refused(server: RunningServer) -> None:
    head = ["Transfer-Encoding: gzip, chunked", "Connection: close"]
    with raw_request(server, head, b"5\r\nhello\r\n0\r\n\r\n") as connection:
        reply = read_all(connection)
    assert reply.startswith("HTTP/1.1 400 ")
    assert "Transfer-Encoding must be chunked, and nothing else." in reply


@pytest.mark.parametrize("space", [" ", "\t"])
def test_space_behind_a_header_is_no_part_of_it(
    server: RunningServer, portrait_jpeg: bytes, space: str
) -> None:
    head = [f"Content-Length: {len(portrait_jpeg)}{space}", "Connection: close"]
    with raw_request(server, head, portrait_jpeg) as connection:
        assert read_all(connection).startswith("HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "head",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: -5"],
        ["Content-Length: 5x"],
        ["Transfer-Encoding: gzip, chunked, identity"],
        ["X: a\x00b"],
        ["Bad Name: x"],
    ],
)
def test_head_that_could_be_read_in_two_ways_is_refused(
    server: RunningServer, head: list[str]
) -> None:
    with raw_request(server, head, b"hello") as connection:
        reply = read_all(connection)
    assert reply.startswith("HTTP/1.1 400 ")


@pytest.mark.parametrize("extra", [["Connection: close"], ["Expect: 100-continue"]])
def test_refusal_reaches_a_client_that_is_still_sending(serve: Serve, extra: list[str]) -> None:
    server = serve(max_body_bytes=10_000_000)
    head = ["Content-Length: 100000000", *extra]
    with raw_request(server, head, b"x" * 20_000_000) as connection:
        reply = read_all(connection)
    assert reply.startswith("HTTP/1.1 413 ")
    assert reply.count("HTTP/1.1 ") == 1
    assert reply.endswith("}")
