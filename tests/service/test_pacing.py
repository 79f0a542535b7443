"""Refused clients that come back at once are read again after a pause, and lose no answer."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from service.connection import NEWCOMERS_PAUSES
from service.pacing import BUSY_SHARE, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Pacer, next_pause
from tests.service.holding import JPEG, Crowd, HeldDetector, grey_photo, read_all
from tests.service.serving import RunningServer, assert_problem, wait_until

PAUSE_SECONDS = 0.4


def test_the_pause_grows_while_the_event_loop_is_busy_and_ends_after() -> None:
    first = next_pause(0.0, busy=True)
    assert first == FIRST_PAUSE_SECONDS
    assert next_pause(first, busy=True) == 2 * FIRST_PAUSE_SECONDS
    assert next_pause(LONGEST_PAUSE_SECONDS, busy=True) == LONGEST_PAUSE_SECONDS
    seconds = LONGEST_PAUSE_SECONDS
    for _ in range(6):
        seconds = next_pause(seconds, busy=False)
    assert seconds == 0.0


def test_only_cpu_time_while_photos_are_turned_away_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=10.0, cpu=1.0)
    clocks = SimpleNamespace(monotonic=lambda: clock.now, thread_time=lambda: clock.cpu)
    monkeypatch.setattr("service.pacing.time", clocks)
    pacer = Pacer()

    def pause_after(cpu: float, *, refused: int, is_full: bool = False) -> float:
        clock.now, clock.cpu = clock.now + 0.1, clock.cpu + cpu
        pacer.look(refused=refused, is_full=is_full)
        return pacer.pause_seconds

    much, little = (BUSY_SHARE + 0.05) * 0.1, (BUSY_SHARE - 0.05) * 0.1
    assert pause_after(much, refused=0) == 0.0
    assert pause_after(little, refused=1) == 0.0
    assert pause_after(much, refused=1) == FIRST_PAUSE_SECONDS
    assert pause_after(little, refused=1) == 0.0
    assert pause_after(much, refused=0, is_full=True) == FIRST_PAUSE_SECONDS


@pytest.mark.skipif(sys.platform != "linux", reason="threads have policies under Linux alone")
def test_wakes_gather_while_many_are_refused_but_not_under_a_policy_somebody_chose() -> None:
    def policies(chosen: int) -> list[int]:
        os.sched_setscheduler(0, chosen, os.sched_param(0))  # of this thread alone
        pacer, found = Pacer(), []
        for refused in (1, 1000, 1000, 0):
            time.sleep(0.02)
            pacer.look(refused=refused)
            found.append(os.sched_getscheduler(0))
        return found

    usual, gathers, idle = os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE
    for chosen, found in (
        (usual, [usual, gathers, gathers, usual]),
        (idle, [idle] * 4),
    ):
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(policies, chosen).result() == found


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every refused client is paced, however idle the event loop is, once there is one of these."""
    given: list[float] = []

    def pause(*_: object, **__: object) -> float:
        given.append(PAUSE_SECONDS)
        return PAUSE_SECONDS

    monkeypatch.setattr("service.pacing.next_pause", pause)
    return given


@pytest.mark.parametrize(
    "headers", [JPEG, {**JPEG, "x-request-id": "mine"}], ids=["plain head", "parsed head"]
)
def test_a_refused_client_is_read_again_after_the_pause(
    pauses: list[float],
    serve_held: Callable[..., RunningServer],
    held: HeldDetector,
    headers: dict[str, str],
) -> None:
    server = serve_held(max_in_flight_images=1)
    first = Crowd(server).post(grey_photo(1))
    held.wait_until_entered()
    pauses.clear()
    wait_until(lambda: len(pauses) > 1)
    large = bytes(500_000)  # comes in several pieces
    with server.client() as client, server.client() as other:
        started = time.monotonic()
        assert_problem(client.post("/predict", content=large, headers=headers), 429, "overloaded")
        refused_after = time.monotonic() - started
        assert other.get("/health/live").status_code == 200
        healthy_after = time.monotonic() - started
        assert_problem(client.post("/predict", content=large, headers=headers), 429, "overloaded")
        again_after = time.monotonic() - started
        held.gate.set()
        assert first().status_code == 200
        photo = client.post("/predict", content=grey_photo(2), headers=headers)
        assert photo.status_code == 200
    assert refused_after < PAUSE_SECONDS
    assert healthy_after < PAUSE_SECONDS
    assert again_after >= PAUSE_SECONDS


def test_newcomers_too_many_get_their_whole_answers_later(
    pauses: list[float], serve_held: Callable[..., RunningServer], held: HeldDetector
) -> None:
    server = serve_held(max_in_flight_images=1, max_connections=2)
    first = Crowd(server).post(grey_photo(1))
    held.wait_until_entered()
    pauses.clear()
    wait_until(lambda: len(pauses) > 1)
    address, photo = server.address, grey_photo(2)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: %d"
    with ExitStack() as stack:
        idle = stack.enter_context(socket.create_connection(address))
        started = time.monotonic()
        newcomers = [stack.enter_context(socket.create_connection(address)) for _ in range(2)]
        replies, took = [], []
        for newcomer in newcomers:
            newcomer.sendall(head % len(photo) + b"\r\n\r\n" + photo)
            replies.append(read_all(newcomer))
            took.append(time.monotonic() - started)
        for reply in replies:
            assert reply.count("HTTP/1.1 ") == 1
            assert reply.startswith("HTTP/1.1 503 ")
            assert "There are too many connections." in reply
        # There is room for one to wait: it is told at once when another comes.
        assert took[0] < NEWCOMERS_PAUSES * PAUSE_SECONDS <= took[1]
        idle.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200 ")
        held.gate.set()
        assert first().status_code == 200
