"""Mutated images, bodies and requests: no 5xx, no hang, no growth. FUZZ_CASES sets how many.

`make test` sends 500, `make fuzz` 20,000.
"""

from __future__ import annotations

import os
import re
import socket
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from service.problems import MEDIA_TYPE
from tests.service.fuzzing import cases, corpus, raw_requests
from tests.service.serving import PATIENCE_SECONDS, RunningServer, Serve

# pytest makes errors of warnings, also of those that the service ignores.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")

CASES = int(os.environ.get("FUZZ_CASES", "500"))
RAW_SHARE = 5
# Python and the decoders keep what they have freed; a leak of a picture a case would be far more.
MAX_GROWTH_BYTES = 150_000_000


@pytest.fixture
def target(serve: Serve) -> Iterator[RunningServer]:
    server = serve(max_image_pixels=1_000_000)
    yield server
    assert_nothing_is_left(server)


@pytest.fixture
def impatient(serve: Serve) -> Iterator[RunningServer]:
    """Does not wait long for what a fault has made of a head or of a length."""
    server = serve(
        max_image_pixels=1_000_000,
        header_timeout_ms=200,
        stall_timeout_ms=200,
        idle_timeout_ms=1000,
    )
    yield server
    assert_nothing_is_left(server)


def assert_nothing_is_left(server: RunningServer) -> None:
    with server.client() as client:
        assert client.get("/health/ready").status_code == 200
    assert server.state.lifecycle.in_flight == 0
    assert server.state.bodies.held == 0
    assert server.state.load.pixels == 0


def documented(server: RunningServer) -> set[int]:
    with server.client() as client:
        document = client.get("/openapi.json").json()
    return {int(status) for status in document["paths"]["/predict"]["post"]["responses"]}


def test_every_photo_of_the_corpus_is_read(target: RunningServer) -> None:
    with target.client() as client:
        for photo in corpus():
            response = client.post("/predict", content=photo, headers={"content-type": "image/png"})
            assert response.status_code == 200, response.text


def test_mutated_bodies_are_answered(target: RunningServer) -> None:
    process, allowed = psutil.Process(), documented(target)
    seen: Counter[int] = Counter()
    with target.client() as client:
        for number, case in enumerate(cases(CASES)):
            if number == min(CASES // 4, 1000):
                before = process.memory_info().rss
            response = client.post(
                "/predict", content=case.body, headers={"content-type": case.content_type}
            )
            seen[response.status_code] += 1
            assert response.status_code < 500, (number, response.text)
            assert response.status_code in allowed, (number, response.text)
            if response.status_code != 200:
                assert response.headers["content-type"] == MEDIA_TYPE
    assert process.memory_info().rss - before < MAX_GROWTH_BYTES
    # The faults are small enough that decoders are reached, and large enough that they refuse.
    assert seen[200] > CASES // 50
    assert seen[422] > CASES // 50


def test_mutated_requests_are_answered_or_cut_off(impatient: RunningServer) -> None:
    for number, request in enumerate(raw_requests(CASES // RAW_SHARE)):
        reply = exchange(impatient, request)
        for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", reply):
            # 504: the request asks for a deadline, and a fault may make it a short one.
            assert int(status) < 500 or int(status) == 504, (number, reply)


def exchange(server: RunningServer, request: bytes) -> bytes:
    """Whatever comes until the server ends the connection, which it must."""
    reply = b""
    with socket.create_connection(server.address, timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(request)
        try:
            while piece := connection.recv(1 << 20):
                reply += piece
        except ConnectionResetError:
            pass
    return reply


def test_cases_are_the_same_every_time() -> None:
    assert list(cases(20)) == list(cases(20)) == list(cases(40))[:20]
    assert list(cases(20)) != list(cases(20, seed=2))
