"""Where many photos wait, a lane gets several at once; each still has the answer of its own."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from service import engine_link
from service.budgets import LanePixels
from service.engine import _Lanes
from service.engine_link import AskedPhoto, EngineLane
from service.engines import MOST_AT_ONCE, MOST_BYTES_AT_ONCE, WAITING_FOR_ONE_MORE, Engines
from service.errors import InferenceError, UnavailableError
from service.messages import MAX_UNSENT_BYTES, Answer, BlockingMessages, Drop, Messages, Read
from service.metrics import Metrics
from service.pipeline import USUAL
from service.replies import keep_faces
from service.settings import load_settings
from tests.service.serving import PATIENCE_SECONDS, running, wait_until
from tests.service.test_faults_crowd import ask, assert_same, photo_of

CLIENTS = 40

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows gives a process no end of a socket pair"
)


def asked(number: int, size: int = 1, answer: Any = None) -> AskedPhoto:  # noqa: ANN401 - a future
    read = Read(number, keep_faces, USUAL, {}, time.perf_counter())
    return AskedPhoto(read, bytes(size), answer)


@pytest.mark.parametrize(
    ("processes", "workers", "waiting", "taken"),
    [
        (1, 1, 1, 1),
        (1, 1, WAITING_FOR_ONE_MORE - 1, 1),
        (1, 1, WAITING_FOR_ONE_MORE, 2),
        (1, 1, 3 * WAITING_FOR_ONE_MORE, 4),
        (1, 2, 3 * WAITING_FOR_ONE_MORE, 2),
        (1, 4, 3 * WAITING_FOR_ONE_MORE, 1),
        (2, 1, 3 * WAITING_FOR_ONE_MORE, 2),  # of a lane each: one worker for two has no use
        (1, 1, 1000, MOST_AT_ONCE),
    ],
)
def test_the_more_wait_the_more_a_lane_gets(
    processes: int, workers: int, waiting: int, taken: int
) -> None:
    engines = idle_engines(workers, processes)
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


def idle_engines(workers: int, processes: int = 1) -> Engines:
    settings = load_settings(image_workers=workers, engines=processes)
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
        lane = lane_of(engines)
        photos = promised(20)
        for photo in photos[:3]:
            lane.read(photo)
        engines._waiting.extend(photos[3:])
        photos[1].answer.cancel()  # its client is gone
        lane.end()
        lane.end()  # its engine's control socket ends, too
        return engines, photos

    engines, photos = asyncio.run(scenario())
    assert photos[1].answer.cancelled()
    if is_closed:
        assert isinstance(photos[0].answer.exception(), UnavailableError)
        assert isinstance(photos[2].answer.exception(), UnavailableError)
    else:
        assert [engines._next_photos() for _ in range(2)] == [[photos[0]], [photos[2]]]
    assert engines._next_photos() == photos[3:8]
    assert len(engines._waiting) == 12


def test_photo_that_was_given_back_can_be_given_up() -> None:
    async def scenario() -> None:
        engines, lane, photos = busy_lane(2)
        lane.end()
        photos[0].answer.cancel()
        engines._let_go(photos[0])
        assert list(engines._waiting) == [photos[1]]

    asyncio.run(scenario())


def test_those_that_go_alone_are_in_no_group() -> None:
    engines = idle_engines(1)
    engines._waiting.extend(asked(number) for number in range(100))
    engines._waiting[1].goes_alone = True
    assert [len(engines._next_photos()) for _ in range(3)] == [1, 1, MOST_AT_ONCE]


@pytest.mark.usefixtures("never_slow")
def test_nobody_waits_for_a_slow_photo_of_the_same_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        engines, lane, photos = busy_lane(3)
        assert [lane.let_go(), lane.let_go()] == [[], []]
        monkeypatch.setattr(engine_link, "SLOW_SECONDS", 0.0)
        assert lane.let_go() == [], "its answer may have come, and not been taken"
        engines._take_back(lane.let_go())
        assert dropped == [1, 2]
        assert list(engines._waiting) == photos[1:]
        assert [lane.let_go(), lane.let_go()] == [[], []], "the slow one stays"
        for number in (1, 2):  # what the engine says of those that it was told to drop
            lane._on_message(Answer(number, None, UnavailableError("nobody waits")), b"")
        assert not any(photo.answer.done() for photo in photos)
        lane._on_message(Answer(0, "slow", None), b"")
        assert photos[0].answer.result() == "slow"
        assert freed == [lane]
        engines._waiting.extend(promised(20))
        groups = [engines._next_photos() for _ in range(3)]
        assert groups[:2] == [[photos[1]], [photos[2]]], "alone, so that it happens to them once"
        assert len(groups[2]) > 1
        again = photos[1:]
        for photo in again:
            lane.read(photo)
        for photo in again:
            lane._on_message(Answer(photo.read.number, "read", None), b"")
        assert [photo.answer.result() for photo in again] == ["read", "read"]

    dropped: list[int] = []
    freed: list[EngineLane] = []
    monkeypatch.setattr(EngineStub, "drop", lambda _, number: dropped.append(number))
    monkeypatch.setattr(EngineStub, "on_free", lambda _, lane: freed.append(lane))
    asyncio.run(scenario())


@pytest.fixture
def never_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, lanes keep their photos."""
    monkeypatch.setattr(engine_link, "SLOW_SECONDS", 2 * PATIENCE_SECONDS)


class EngineStub:
    """Stands for an engine's process."""

    def __init__(self, engines: Engines) -> None:
        self.give_back = engines._take_back

    def drop(self, number: int) -> None:
        """Told to read it no more."""

    def on_free(self, lane: EngineLane) -> None:
        """A lane has nothing to do."""

    def was_heard(self) -> None:
        """Something was said."""


def lane_of(engines: Engines) -> EngineLane:
    # Its numbers are those that the engines give out from here on.
    engines._numbers = itertools.count(1000)
    return EngineLane(EngineStub(engines))  # type: ignore[arg-type]


def busy_lane(count: int) -> tuple[Engines, EngineLane, list[AskedPhoto]]:
    """A lane that reads the first of so many photos, whose numbers begin with 0."""
    engines = idle_engines(1)
    lane, photos = lane_of(engines), promised(count)
    for photo in photos:
        lane.read(photo)
    return engines, lane, photos


def promised(count: int) -> list[AskedPhoto]:
    loop = asyncio.get_running_loop()
    return [asked(number, answer=loop.create_future()) for number in range(count)]


def test_photo_whose_engine_ends_while_it_is_alone_is_lost() -> None:
    async def scenario() -> AskedPhoto:
        _, lane, [photo] = busy_lane(1)
        lane.end()
        return photo

    assert isinstance(asyncio.run(scenario()).answer.exception(), UnavailableError)


@pytest.mark.usefixtures("never_slow")
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
        [lane] = engine.lanes
        with ThreadPoolExecutor(CLIENTS) as crowd:
            process.suspend()
            replies = crowd.map(lambda photo: ask(client, photo), photos)
            wait_until(lambda: server.state.lifecycle.in_flight == CLIENTS)
            while not lane.waiting:
                process.resume()
                wait_until(lambda: lane.waiting > 3)
                process.suspend()
                time.sleep(0.3)  # until what it has sent has been taken
            process.kill()
            sizes = [reply["image"]["width"] for reply in replies]  # each of them is a 200
    assert sizes == [300 + 2 * number for number in range(CLIENTS)]


def end_of_patience(end: socket.socket) -> None:
    """What never comes is an error; Python's own time-out would wait for what has_more asks."""
    seconds = struct.pack("ll", int(PATIENCE_SECONDS), 0)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)


def test_answers_go_together_unless_they_are_large() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        end_of_patience(ours)
        engine, server = BlockingMessages(theirs), BlockingMessages(ours)
        engine.put(Drop(1))
        engine.put(Drop(2))
        assert not server.has_more()
        engine.flush()
        assert server.has_more()
        assert [server.receive(), server.receive()] == [(Drop(1), b""), (Drop(2), b"")]
        assert not server.has_more()
        engine.flush_late()
        engine.put(Drop(1))
        engine.flush_late()
        assert not server.has_more(), "it was put after the last call"
        engine.flush_late()
        assert server.receive() == (Drop(1), b"")
        engine.put(Drop(2))
        engine.flush_late()
        engine.flush()
        engine.put(Drop(3))
        engine.flush_late()
        assert server.receive() == (Drop(2), b"")
        assert not server.has_more(), "what the last call saw is sent"
        engine.flush()
        assert server.receive() == (Drop(3), b"")
        half = Answer(3, bytes(MAX_UNSENT_BYTES // 2), None)
        engine.put(half)
        assert not server.has_more()
        with ThreadPoolExecutor(1) as pool:
            putting = pool.submit(engine.put, half)  # may be more than a socket takes at once
            assert [server.receive(), server.receive()] == [(half, b"")] * 2
            putting.result()
        engine.flush()
        theirs.shutdown(socket.SHUT_WR)
        assert not server.has_more()
        assert server.receive() is None


class SlowPipeline:
    """Reads nothing, and takes `seconds` for each photo."""

    def __init__(self, *seconds: float) -> None:
        self._seconds = iter(seconds)

    def task(self, photo: bytes, *_: object) -> SimpleNamespace:
        return SimpleNamespace(photo=photo, is_dropped=False)

    def read_here(self, task: SimpleNamespace, *_: object, **__: object) -> bytes:
        time.sleep(next(self._seconds))
        photo: bytes = task.photo
        return photo


def test_engine_answers_together_but_holds_no_answer_for_long() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        end_of_patience(ours)
        pipeline = SlowPipeline(0.0, 0.3, 0.0, 0.3, 0.0)
        lanes = _Lanes(pipeline, LanePixels(1), [theirs])  # type: ignore[arg-type]
        sender, numbers = Messages(lambda *_: None, lambda: None), range(5)
        sent: list[bytes] = []
        wire = SimpleNamespace(is_closing=lambda: False, writelines=sent.extend)
        sender.connection_made(wire)  # type: ignore[arg-type]
        for number in numbers:
            sender.send(Read(number, keep_faces, USUAL, {}, 0.0), b"photo %d" % number)
        ours.sendall(b"".join(sent))
        lanes.start()
        time.sleep(0.1)
        server = BlockingMessages(ours)
        lanes.flush_late()
        assert not server.has_more(), "the first answer waits for the second"
        lanes.flush_late()
        assert server.receive() == (Answer(0, b"photo 0", None), b"")
        answers = [server.receive() for _ in numbers[1:]]
        assert answers == [(Answer(n, b"photo %d" % n, None), b"") for n in numbers[1:]]
        ours.shutdown(socket.SHUT_WR)
        lanes.join(PATIENCE_SECONDS)


@pytest.mark.usefixtures("never_slow")
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


def test_photo_that_cannot_be_sent_is_told_and_leaves_its_lane_free() -> None:
    async def scenario() -> None:
        engines = idle_engines(1)
        lane = lane_of(engines)
        lane.messages.connection_made(
            SimpleNamespace(is_closing=lambda: False, writelines=lambda _: None)  # type: ignore[arg-type]
        )
        photos = promised(5)
        for number in (0, 2):
            photos[number].read = photos[number].read._replace(then=lambda *_: None)
        engines._waiting.extend(photos[:1])
        engines._idle.append(lane)
        engines._hand_out()
        assert photos[0].answer.exception() is not None
        assert engines._idle == [lane]
        engines._idle.clear()
        engines._waiting.extend(photos[1:])
        engines._idle.append(lane)
        engines._hand_out()
        assert [photo.answer.done() for photo in photos[1:]] == [False, True, False, False]
        assert photos[2].answer.exception() is not None
        assert engines._idle == []

    asyncio.run(scenario())
