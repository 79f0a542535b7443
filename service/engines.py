"""The server's side of its engines: processes that read photos, each with networks of its own.

Python runs one thread at a time. With HTTP in one process and pixels and networks in another,
neither waits for the other's; and what a photo does to a decoder, it does not do to the server.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, TypeVar

from structlog.contextvars import get_contextvars

from service.errors import StartupError, UnavailableError
from service.messages import (
    Answer,
    Drop,
    Failed,
    Health,
    Loaded,
    Message,
    Messages,
    Read,
    Ready,
    Start,
)
from service.metrics import Metrics
from service.observing import Load, replay
from service.pipeline import Then
from service.schemas import ModelReply
from service.settings import ENV_PREFIX, Settings, available_cpus
from service.starting import startup_error

Result = TypeVar("Result")

SOCKET_BYTES = 1024 * 1024  # so that most photos go at once
# Between an engine's end and the next try, where it had not lasted: longer each time.
SOUND_SECONDS = 60.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
# An engine that says nothing for so long beyond the limit of a stage hangs as a whole.
SILENCE_SECONDS = 3.0
# For a start that is tried again; and for an engine to end when it has closed a socket.
START_SECONDS, LAST_SECONDS = 120.0, 1.0
RETRY_SECONDS = 2
ENGINE = "engine"

logger = logging.getLogger(__name__)


def engines_run_here() -> bool:
    """Whether a process can be given ends of socket pairs on this system."""
    return sys.platform != "win32"


@dataclass(eq=False)
class _Photo:
    """One call of recognize."""

    read: Read
    photo: bytes
    answer: asyncio.Future[Any]
    lane: _Lane | None = None


class _Lane:
    """The server's end of one thread of an engine, which has at most one photo."""

    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.messages = Messages(self._on_message, self._on_end)
        self._photo: _Photo | None = None

    def read(self, photo: _Photo) -> None:
        """Send it a photo; it is busy until that is answered."""
        self._photo = photo
        photo.lane = self
        self.messages.send(photo.read, photo.photo)

    def let_go(self) -> None:
        """The photo was not sent."""
        self._photo = None

    def end(self) -> None:
        """There will be no answer any more."""
        photo, self._photo = self._photo, None
        if photo is not None and not photo.answer.done():
            photo.answer.set_exception(_ended())

    def _on_end(self) -> None:
        self.end()
        self.engine.lose(self)

    def _on_message(self, message: Message, _: bytes) -> None:
        assert isinstance(message, Answer), "lanes answer"
        photo, self._photo = self._photo, None
        self.engine.was_heard()
        try:
            # First the next photo, then what becomes of this one: the lane need not wait for that.
            self.engine.on_free(self)
        finally:
            if photo is not None and not photo.answer.done():
                if message.error is None:
                    photo.answer.set_result(message.result)
                else:
                    photo.answer.set_exception(message.error)


class _Engine:
    """One process, from its start to its end."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        on_free: Callable[[_Lane], None],
        on_lost: Callable[[_Lane], None],
        on_end: Callable[[], None],
    ) -> None:
        """`on_free` gets a lane that has no photo, `on_lost` one that takes none any more."""
        loop = asyncio.get_running_loop()
        self._metrics = metrics
        self.on_free = on_free
        self._on_lost = on_lost
        self._tell_end = on_end
        self.load = Load()
        self.resident_bytes = 0
        self.model: asyncio.Future[ModelReply] = loop.create_future()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended = asyncio.Event()
        self.process: subprocess.Popen[bytes] | None = None
        self.started = self._heard = time.monotonic()
        self.is_warm = False
        self._settings = settings
        self._control = Messages(self._on_message, self._on_end)
        self._lanes = [_Lane(self) for _ in range(settings.image_workers)]
        self._is_stopping = False
        self._hung: str | None = None
        self._cpu_seconds = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether it takes photos."""
        return self.is_warm and not self.ended.is_set()

    def hung(self, limit_seconds: float) -> str | None:
        """The stage that hangs in it, or itself where it has said nothing for long."""
        if not self.is_ready:
            return None
        silent = time.monotonic() - self._heard > limit_seconds + SILENCE_SECONDS
        return ENGINE if silent else self._hung

    def was_heard(self) -> None:
        """It has said something."""
        self._heard = time.monotonic()

    async def start(self) -> None:
        """Start the process, which then loads its networks."""
        protocols = [self._control, *(lane.messages for lane in self._lanes)]
        with ExitStack() as ours, ExitStack() as theirs:
            pairs = [_pair(ours, theirs) for _ in protocols]
            self.process = await asyncio.to_thread(_launch, [end for _, end in pairs])
            for protocol, (end, _) in zip(protocols, pairs, strict=True):
                await _connect(protocol, end)
            ours.pop_all()  # the event loop has them now
        self._control.send(Start(self._settings))

    def drop(self, number: int) -> None:
        """Tell it that nobody waits for this photo any more."""
        self._control.send(Drop(number))

    def lose(self, lane: _Lane) -> None:
        """A lane has ended: where the whole engine does not, it is to, for another to come."""
        self._on_lost(lane)
        asyncio.get_running_loop().call_later(LAST_SECONDS, self.kill)

    def kill(self) -> None:
        """End it at once, where it has not ended and is not being stopped."""
        if self.process is not None and not self._is_stopping and not self.ended.is_set():
            self.process.kill()

    async def stop(self, timeout_seconds: float) -> None:
        """Let it finish and end; past the time it is killed."""
        self._is_stopping = True
        for messages in (self._control, *(lane.messages for lane in self._lanes)):
            messages.close()
        if self.process is not None:
            try:
                await asyncio.to_thread(self.process.wait, timeout_seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                await asyncio.to_thread(self.process.wait)

    def _on_message(self, message: Message, _: bytes) -> None:
        self.was_heard()
        if isinstance(message, Health):
            replay(message.notes, self._metrics)
            self._metrics.engine_cpu_seconds.inc(message.cpu_seconds - self._cpu_seconds)
            self._cpu_seconds, self.resident_bytes = message.cpu_seconds, message.resident_bytes
            self.load, self._hung = message.load, message.hung
        elif isinstance(message, Loaded):
            if not self.model.done():
                self.model.set_result(message.model)
        elif isinstance(message, Ready):
            self.is_warm = True
            if not self.ready.done():
                self.ready.set_result(None)
            for lane in self._lanes:
                self.on_free(lane)
        elif isinstance(message, Failed):
            self._fail_start(message.error)

    def _on_end(self) -> None:
        self.ended.set()
        self._fail_start(StartupError("an engine ended while it was starting"))
        self.load, self.resident_bytes, self._hung = Load(), 0, None
        for lane in self._lanes:
            lane.end()
            self._on_lost(lane)
        self._tell_end()

    def _fail_start(self, error: StartupError) -> None:
        for future in (self.model, self.ready):
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody may wait for it: no warning, then


def _pair(ours: ExitStack, theirs: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection to an engine; each stack closes its own."""
    pair = socket.socketpair()
    for stack, end in zip((ours, theirs), pair, strict=True):
        stack.enter_context(end)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    pair[0].setblocking(False)
    return pair


async def _connect(protocol: Messages, end: socket.socket) -> None:
    await asyncio.get_running_loop().create_connection(lambda: protocol, sock=end)


def _launch(ends: Sequence[socket.socket]) -> subprocess.Popen[bytes]:
    """Start an engine's process, which has these sockets and none of the settings' secrets."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    # -P: what lies in the working directory is not imported. The package is found where this is.
    paths = (str(Path(__file__).parents[1]), environment.get("PYTHONPATH"))
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    numbers = [end.fileno() for end in ends]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "service.engine", *map(str, numbers)],
        pass_fds=numbers,
        stdin=subprocess.DEVNULL,
        env=environment,
        process_group=0,  # what a terminal sends is for the server, which ends the engine
    )


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
        lanes = settings.image_workers or available_cpus()
        self._count = settings.engines
        self._settings = settings.model_copy(
            update={
                "api_keys": None,  # none of an engine's business
                "image_workers": -(-lanes // self._count),
                "max_in_flight_pixels": settings.max_in_flight_pixels // self._count,
            }
        )
        self._metrics = metrics
        self._on_change = on_change
        self._on_loaded: Callable[[ModelReply], None] = lambda _: None
        self._engines: list[_Engine] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._numbers = itertools.count()
        self._waiting: deque[_Photo] = deque()
        self._idle: list[_Lane] = []
        self._is_closed = False
        metrics.engines.set_function(lambda: sum(engine.is_ready for engine in self._engines))
        metrics.engine_bytes.set_function(lambda: sum(e.resident_bytes for e in self._engines))

    @property
    def load(self) -> Load:
        """See PhotoReader."""
        return reduce(add, (engine.load for engine in self._engines), Load(len(self._waiting)))

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

    async def recognize(
        self,
        photo: bytes,
        then: Then[Result],
        *,
        max_faces: int | None = None,
        min_score: float | None = None,
        whole: bool = False,
    ) -> Result:
        """See Pipeline.recognize; `then` and what it makes are pickled.

        Raises UnavailableError where the engine that had the photo ended. Photos that no engine has
        yet wait for the next one.
        """
        if self._is_closed:
            raise UnavailableError("the service is shutting down")
        number = next(self._numbers)
        asked = time.perf_counter()
        read = Read(number, then, max_faces, min_score, whole, get_contextvars(), asked)
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        mine = _Photo(read, photo, answer)
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

    def _let_go(self, photo: _Photo) -> None:
        if photo.lane is None:
            with suppress(ValueError):
                self._waiting.remove(photo)
        elif photo.answer.cancelled():
            photo.lane.engine.drop(photo.read.number)

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            lane, photo = self._next_lane(), self._waiting.popleft()
            try:
                lane.read(photo)
            except Exception as error:  # noqa: BLE001 - it can't be sent: its caller hears of it
                lane.let_go()
                self._idle.append(lane)
                if not photo.answer.done():
                    photo.answer.set_exception(error)

    def _next_lane(self) -> _Lane:
        # Of the engine that has the most free lanes the one that was busy last: its core's caches
        # still hold what it works with.
        engines = [lane.engine for lane in self._idle]
        places = range(len(engines))
        return self._idle.pop(max(places, key=lambda at: (engines.count(engines[at]), at)))

    def _free(self, lane: _Lane) -> None:
        if lane.engine.is_ready:
            self._idle.append(lane)
            self._hand_out()

    def _new(self) -> _Engine:
        return _Engine(
            self._settings,
            self._metrics,
            on_free=self._free,
            on_lost=self._lose,
            on_end=self._on_change,
        )

    def _lose(self, lane: _Lane) -> None:
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


def _ended() -> UnavailableError:
    return UnavailableError(
        "What read this photo has ended, and is being started again.",
        retry_after_seconds=RETRY_SECONDS,
    )
