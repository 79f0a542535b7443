"""Where many photos wait, a lane gets several at once; each still has the answer of its own."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from service.engine_link import AskedPhoto, EngineLane
from service.engines import MOST_AT_ONCE, MOST_BYTES_AT_ONCE, WAITING_FOR_ONE_MORE, Engines
from service.errors import InferenceError, UnavailableError
from service.messages import MAX_UNSENT_BYTES, Answer, BlockingMessages, Drop, Read
from service.metrics import Metrics
from service.pipeline import USUAL
from service.replies import keep_faces
from service.settings import load_settings
from tests.service.serving import PATIENCE_SECONDS, running
from tests.service.test_faults_crowd import ask, assert_same, photo_of

CLIENTS = 40

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows gives a process no end of a socket pair"
)


def asked(number: int, size: int = 1, answer: Any = None) -> AskedPhoto:  # noqa: ANN401 - a future
    read = Read(number, keep_faces, USUAL, {}, time.perf_counter())
    return AskedPhoto(read, bytes(size), answer)


@pytest.mark.parametrize(
    ("workers", "waiting", "taken"),
    [
        (1, 1, 1),
        (1, WAITING_FOR_ONE_MORE - 1, 1),
        (1, WAITING_FOR_ONE_MORE, 2),
        (1, 3 * WAITING_FOR_ONE_MORE, 4),
        (2, 3 * WAITING_FOR_ONE_MORE, 2),
        (4, 3 * WAITING_FOR_ONE_MORE, 1),
        (1, 1000, MOST_AT_ONCE),
    ],
)
def test_the_more_wait_the_more_a_lane_gets(workers: int, waiting: int, taken: int) -> None:
    engines = idle_engines(workers)
    engines._waiting.extend(asked(number) for number in range(waiting))
    photos = engines._next_photos()
    assert [photo.read.number for photo in photos] == list(range(taken)), "first come, first served"
    assert len(engines._waiting) == waiting - taken


def test_large_photos_go_one_by_one() -> None:
    engines = idle_engines(1)
    sizes = [MOST_BYTES_AT_ONCE + 1, MOST_BYTES_AT_ONCE // 2, MOST_BYTES_AT_ONCE // 2, 1]
    engines._waiting.extend(asked(number, size) for number, size in enumerate(sizes))
    engines._waiting.extend(asked(number) for number in range(len(sizes), 100))
    assert [len(photo.photo) for photo in engines._next_photos()] == sizes[:1]
    assert [len(photo.photo) for photo in engines._next_photos()] == sizes[1:3]


def idle_engines(workers: int) -> Engines:
    settings = load_settings(image_workers=workers)
    return Engines(settings, metrics=Metrics(), on_change=lambda: None)


def test_lane_is_free_once_all_its_photos_are_answered() -> None:
    freed: list[EngineLane] = []

    async def scenario() -> list[AskedPhoto]:
        lane = EngineLane(SimpleNamespace(on_free=freed.append, was_heard=lambda: None))  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        photos = [asked(number, answer=loop.create_future()) for number in range(3)]
        for photo in photos:
            lane.read(photo)
        lane._on_message(Answer(0, "first", None), b"")
        assert photos[0].answer.result() == "first"
        assert not freed
        lane._on_message(Answer(1, None, InferenceError("the detector failed")), b"")
        assert not freed
        lane._on_message(Answer(2, "third", None), b"")
        assert freed == [lane]
        assert not lane.is_busy
        return photos

    first, second, third = asyncio.run(scenario())
    assert (first.answer.result(), third.answer.result()) == ("first", "third")
    assert isinstance(second.answer.exception(), InferenceError)


@pytest.mark.parametrize("is_closed", [False, True])
def test_photos_of_a_lane_that_ends_are_read_alone_unless_the_service_ends(is_closed: bool) -> None:
    async def scenario() -> tuple[Engines, list[AskedPhoto]]:
        engines = idle_engines(1)
        engines._is_closed = is_closed
        lane = EngineLane(SimpleNamespace(give_back=engines._take_back))  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        photos = [asked(number, answer=loop.create_future()) for number in range(20)]
        for photo in photos[:3]:
            lane.read(photo)
        engines._waiting.extend(photos[3:])
        photos[1].answer.cancel()  # its client is gone
        lane.end()
        return engines, photos

    engines, photos = asyncio.run(scenario())
    assert photos[1].answer.cancelled()
    if is_closed:
        assert isinstance(photos[0].answer.exception(), UnavailableError)
        assert isinstance(photos[2].answer.exception(), UnavailableError)
    else:
        assert [engines._next_photos() for _ in range(2)] == [[photos[0]], [photos[2]]]
    assert engines._next_photos() == photos[3:8]


def test_photo_whose_engine_ends_while_it_is_alone_is_lost() -> None:
    async def scenario() -> AskedPhoto:
        lane = EngineLane(SimpleNamespace())  # type: ignore[arg-type]
        photo = asked(0, answer=asyncio.get_running_loop().create_future())
        lane.read(photo)
        lane.end()
        return photo

    assert isinstance(asyncio.run(scenario()).answer.exception(), UnavailableError)


def test_killed_engine_loses_none_of_the_photos_that_a_lane_had_together(
    portrait: NDArray[np.uint8],
) -> None:
    settings = load_settings(image_workers=1, max_in_flight_images=CLIENTS)
    photos = [photo_of(number, portrait) for number in range(CLIENTS)]
    with running(settings) as server, server.client() as client:
        reader = server.state.reader
        assert isinstance(reader, Engines)
        [engine] = reader._engines
        assert engine.process is not None
        process = psutil.Process(engine.process.pid)
        with ThreadPoolExecutor(CLIENTS) as crowd:
            replies = crowd.map(lambda photo: ask(client, photo), photos)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while len(engine._lanes[0]._photos) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.0005)
            process.suspend()
            assert len(engine._lanes[0]._photos) > 1
            process.kill()
            sizes = [reply["image"]["width"] for reply in replies]  # each of them is a 200
    assert sizes == [300 + 2 * number for number in range(CLIENTS)]


def test_answers_go_together_unless_they_are_large() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        engine, server = BlockingMessages(theirs), BlockingMessages(ours)
        engine.put(Drop(1))
        engine.put(Drop(2))
        assert not server.has_more()
        engine.flush()
        assert server.has_more()
        assert [server.receive(), server.receive()] == [(Drop(1), b""), (Drop(2), b"")]
        assert not server.has_more()
        large = Answer(3, bytes(MAX_UNSENT_BYTES), None)
        with ThreadPoolExecutor(1) as pool:
            putting = pool.submit(engine.put, large)  # more than a socket takes at once
            assert server.receive() == (large, b"")
            putting.result()
        engine.flush()
        theirs.shutdown(socket.SHUT_WR)
        assert not server.has_more()
        assert server.receive() is None


def test_everyone_in_a_crowd_before_an_engine_gets_its_own_answer(
    portrait: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    next_photos = Engines._next_photos

    def noted(engines: Engines) -> list[AskedPhoto]:
        photos = next_photos(engines)
        sizes.append(len(photos))
        return photos

    monkeypatch.setattr(Engines, "_next_photos", noted)
    photos = [photo_of(number, portrait) for number in range(CLIENTS)]
    settings = load_settings(image_workers=1, max_in_flight_images=CLIENTS)
    with running(settings) as server, server.client() as client:
        alone = [ask(client, photo) for photo in photos]
        assert set(sizes) == {1}
        with ThreadPoolExecutor(CLIENTS) as crowd:
            together = list(crowd.map(lambda photo: ask(client, photo), photos))
    assert max(sizes) > 1
    assert sum(sizes) == 2 * CLIENTS
    for expected, reply in zip(alone, together, strict=True):
        assert reply["image"] == expected["image"]
        assert len(reply["faces"]) == 1
        assert_same(expected["faces"][0], reply["faces"][0])
