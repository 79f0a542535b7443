"""The server's side of its engines: processes that read photos, each with networks of its own.

Python runs one thread at a time. With HTTP in one process and pixels and networks in another,
neither waits for the other's; and what a photo does to a decoder, it does not do to the server.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import reduce
from operator import add
from typing import TypeVar

from structlog.contextvars import get_contextvars

from service.engine_link import LAST_SECONDS, SOCKET_BYTES, AskedPhoto, EngineLane, EngineLink
from service.errors import UnavailableError
from service.messages import Read
from service.metrics import Metrics
from service.observing import Load
from service.pipeline import USUAL, Then, Wishes
from service.schemas import ModelReply
from service.settings import Settings
from service.starting import startup_error

Result = TypeVar("Result")

# Between an engine's end and the next try, where it had not lasted: longer each time.
SOUND_SECONDS = 60.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
START_SECONDS = 120.0  # for a start that is tried again

# Where many photos wait, a lane gets several at once and answers them together: the server handles
# answers and new requests in groups then, with warm caches. One more for each four that wait for a
# lane: an answer is held back for an eighth of the time, on average, that a newcomer waits.
WAITING_FOR_ONE_MORE = 4
MOST_AT_ONCE = 16
MOST_BYTES_AT_ONCE = SOCKET_BYTES // 2
RELIEF_SECONDS = 0.1

logger = logging.getLogger(__name__)


def engines_run_here() -> bool:
    """Whether a process can be given ends of socket pairs on this system."""
    return sys.platform != "win32"


class Engines:
    """A reader of photos (`service.pipeline.PhotoReader`) that has others read them.

    Photos wait here until a lane is free, first come, first served. An engine that ends is started
    again. Use it from one event loop.
    """

    def __init__(
        self, settings: Settings, *, metrics: Metrics, on_change: Callable[[], None]
    ) -> None:
        """`on_change` is called when an engine has ended or is there again."""
        # One a core: another would have the photos take turns, and the slowest ones wait longer.
        lanes = settings.photo_threads
        self._count = settings.engines
        self._lanes_each = -(-lanes // self._count)
        self._settings = settings.model_copy(
            update={
                "api_keys": None,  # none of an engine's business
                "image_workers": self._lanes_each,
                "max_in_flight_pixels": settings.max_in_flight_pixels // self._count,
            }
        )
        self._metrics = metrics
        self._on_change = on_change
        self._on_loaded: Callable[[ModelReply], None] = lambda _: None
        self._engines: list[EngineLink] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._numbers = itertools.count()
        self._waiting: deque[AskedPhoto] = deque()
        self._idle: list[EngineLane] = []
        self._is_closed = False
        metrics.engines.set_function(lambda: sum(engine.is_ready for engine in self._engines))
        metrics.engine_bytes.set_function(lambda: sum(e.resident_bytes for e in self._engines))

    @property
    def load(self) -> Load:
        """See PhotoReader."""
        waiting = len(self._waiting) + sum(lane.waiting for lane in self._all_lanes())
        return reduce(add, (engine.load for engine in self._engines), Load(waiting))

    @property
    def are_gone(self) -> bool:
        """Whether all of them have ended, or are being started again."""
        return bool(self._keepers) and not any(engine.is_ready for engine in self._engines)

    def end_hung(self, limit_seconds: float) -> None:
        """End engines in which a stage hangs, for others to come in their place."""
        for engine in self._engines:
            if (stage := engine.hung(limit_seconds)) is not None:
                logger.critical("the stage %r hangs, and its engine is ended", stage)
                engine.kill()

    async def start(self, on_loaded: Callable[[ModelReply], None]) -> None:
        """Start all of them and wait until they are warm; `on_loaded` is called before that.

        Raises a StartupError.
        """
        self._on_loaded = on_loaded
        self._engines = [self._new() for _ in range(self._count)]
        for engine in self._engines:
            await engine.start()
        on_loaded(await self._engines[0].model)
        await asyncio.gather(*(engine.ready for engine in self._engines))
        self._keepers = [asyncio.create_task(self._keep(place)) for place in range(self._count)]
        self._keepers.append(asyncio.create_task(self._relieve()))

    async def recognize(
        self,
        photo: bytes,
        then: Then[Result],
        wishes: Wishes = USUAL,
    ) -> Result:
        """See Pipeline.recognize; `then` and what it makes are pickled.

        Raises UnavailableError where the engine that had the photo ended. Photos that no engine has
        yet wait for the next one.
        """
        if self._is_closed:
            raise UnavailableError("the service is shutting down")
        number = next(self._numbers)
        asked = time.perf_counter()
        read = Read(number, then, wishes, get_contextvars(), asked)
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        mine = AskedPhoto(read, photo, answer)
        self._waiting.append(mine)
        self._hand_out()
        try:
            return await answer
        finally:
            self._let_go(mine)
            del mine, answer  # an error of it holds this frame

    async def drain(self, timeout_seconds: float) -> None:
        """See PhotoReader."""
        self._is_closed = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*(engine.stop(timeout_seconds) for engine in self._engines))

    def _let_go(self, photo: AskedPhoto) -> None:
        if photo.lane is None:
            with suppress(ValueError):
                self._waiting.remove(photo)
        elif photo.answer.cancelled():
            photo.lane.engine.drop(photo.read.number)

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            lane = self._next_lane()
            for photo in self._next_photos():
                try:
                    lane.read(photo)
                except Exception as error:  # noqa: BLE001 - it can't be sent: its caller hears of it
                    photo.fail(error)
            if not lane.is_busy:
                self._idle.append(lane)

    def _next_photos(self) -> list[AskedPhoto]:
        """What one lane gets at once: the first that waits, and more where many do."""
        lanes = self._lanes_each * self._count
        most = 1 + len(self._waiting) // (WAITING_FOR_ONE_MORE * lanes)
        photos = [self._waiting.popleft()]
        size = len(photos[0].photo)
        while self._waiting and len(photos) < min(most, MOST_AT_ONCE):
            one_more = self._waiting[0]
            size += len(one_more.photo)
            if size > MOST_BYTES_AT_ONCE or photos[0].goes_alone or one_more.goes_alone:
                break
            photos.append(self._waiting.popleft())
        return photos

    def _take_back(self, photos: Sequence[AskedPhoto]) -> None:
        """Have them read by the next lane that is free, before all others, and each by itself.

        None is handed out here: where an engine ends, others of its lanes may not know it yet.
        """
        for photo in reversed(photos):
            photo.lane, photo.goes_alone = None, True
            # What the lane that had it still says of it is passed over.
            photo.read = photo.read._replace(number=next(self._numbers))
            if self._is_closed:
                photo.fail()
            elif not photo.answer.done():
                self._waiting.appendleft(photo)

    async def _relieve(self) -> None:
        """Have nobody wait for a slow photo that happens to be before it in a lane."""
        while True:
            await asyncio.sleep(RELIEF_SECONDS)
            for lane in self._all_lanes():
                self._take_back(lane.let_go())
            self._hand_out()

    def _all_lanes(self) -> Iterator[EngineLane]:
        return itertools.chain.from_iterable(engine.lanes for engine in self._engines)

    def _next_lane(self) -> EngineLane:
        # Of the engine that has the most free lanes the one that was busy last: its core's caches
        # still hold what it works with.
        engines = [lane.engine for lane in self._idle]
        places = range(len(engines))
        return self._idle.pop(max(places, key=lambda at: (engines.count(engines[at]), at)))

    def _free(self, lane: EngineLane) -> None:
        if lane.engine.is_ready:
            self._idle.append(lane)
            self._hand_out()

    def _new(self) -> EngineLink:
        return EngineLink(
            self._settings,
            self._metrics,
            on_free=self._free,
            on_lost=self._lose,
            give_back=self._take_back,
            on_end=self._on_change,
        )

    def _lose(self, lane: EngineLane) -> None:
        with suppress(ValueError):
            self._idle.remove(lane)

    async def _keep(self, place: int) -> None:
        """Start the engine in this place again whenever it ends."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            engine = self._engines[place]
            await engine.ended.wait()
            await engine.stop(LAST_SECONDS)
            code = None if engine.process is None else engine.process.returncode
            logger.critical("an engine ended, and is started again", extra={"exit_code": code})
            self._metrics.engine_restarts.inc()
            if time.monotonic() - engine.started < SOUND_SECONDS:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                pause = FIRST_PAUSE_SECONDS
            await self._start_again(place)

    async def _start_again(self, place: int) -> None:
        engine = self._engines[place] = self._new()
        try:
            async with asyncio.timeout(START_SECONDS):
                await engine.start()
                await engine.ready
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
            reason = startup_error(error).detail
            logger.critical("an engine does not start again: %s", reason)
            await engine.stop(0)
            engine.ended.set()  # also where it had not come so far that it could end
            return
        logger.warning("an engine is there again")
        self._on_loaded(engine.model.result())  # the files may be others now
        self._on_change()
