"""The server's side of one engine: its process, its sockets, the photos that its lanes have."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from service.schemas import ModelReply
from service.settings import ENV_PREFIX, Settings

SOCKET_BYTES = 1024 * 1024  # so that most photos go at once
# An engine that says nothing for so long beyond the limit of a stage hangs as a whole.
SILENCE_SECONDS = 3.0
LAST_SECONDS = 1.0  # for an engine to end when it has closed a socket
# A lane that answers nothing for so long has a slow photo: others need not wait for it.
SLOW_SECONDS = 0.25
RETRY_SECONDS = 2
ENGINE = "engine"
STANDARD_ERROR = 2
MAX_LINE_BYTES = 1000

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class AskedPhoto:
    """One call of recognize."""

    read: Read
    photo: bytes
    answer: asyncio.Future[Any]
    lane: EngineLane | None = None
    goes_alone: bool = False
    """It was with others in a lane that ended or was slow; which of them did it is not known."""

    def fail(self, error: Exception | None = None) -> None:
        """There will be no answer; without `error`, since what had the photo has ended."""
        if not self.answer.done():
            self.answer.set_exception(error or _ended())


class EngineLane:
    """The server's end of one thread of an engine, which reads its photos one by one."""

    def __init__(self, engine: EngineLink) -> None:
        self.engine = engine
        self.messages = Messages(self._on_message, self._on_end)
        self._photos: dict[int, AskedPhoto] = {}
        self._moved_at = 0.0
        self._seen_slow = False

    def read(self, photo: AskedPhoto) -> None:
        """Send it a photo; it is busy until all that it has are answered."""
        self.messages.send(photo.read, photo.photo)
        self._photos[photo.read.number] = photo
        photo.lane = self
        self._has_moved()

    @property
    def is_busy(self) -> bool:
        """Whether it has photos that are not answered yet."""
        return bool(self._photos)

    @property
    def waiting(self) -> int:
        """Photos that it has beside the one that it reads."""
        return max(0, len(self._photos) - 1)

    def let_go(self) -> list[AskedPhoto]:
        """Where the lane is slow, all but its first photo, which it then reads no more."""
        if not self.waiting or time.monotonic() - self._moved_at < SLOW_SECONDS:
            return []
        # Where the whole server stood still, an answer that has come is taken only after this.
        if not self._seen_slow:
            self._seen_slow = True
            return []
        first, *others = self._photos.values()
        self._photos = {first.read.number: first}
        for photo in others:
            self.engine.drop(photo.read.number)
        return others

    def _has_moved(self) -> None:
        self._moved_at, self._seen_slow = time.monotonic(), False

    def end(self) -> None:
        """There will be no more answers: photos that it had together are to be read by others."""
        photos, self._photos = list(self._photos.values()), {}
        if len(photos) == 1:
            photos[0].fail()
        else:
            self.engine.give_back(photos)

    def _on_end(self) -> None:
        self.end()
        self.engine.lose(self)

    def _on_message(self, message: Message, _: bytes) -> None:
        assert isinstance(message, Answer), "lanes answer"
        self.engine.was_heard()
        photo = self._photos.pop(message.number, None)
        if photo is None:  # it was let go
            return
        self._has_moved()
        try:
            # First the next photo, then what becomes of this one: the lane need not wait for that.
            if not self.is_busy:
                self.engine.on_free(self)
        finally:
            if not photo.answer.done():
                if message.error is None:
                    photo.answer.set_result(message.result)
                else:
                    photo.answer.set_exception(message.error)


class EngineLink:
    """One process, from its start to its end."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        on_free: Callable[[EngineLane], None],
        on_lost: Callable[[EngineLane], None],
        give_back: Callable[[Sequence[AskedPhoto]], None],
        on_end: Callable[[], None],
    ) -> None:
        """`on_free` gets a lane that has no photos, `on_lost` one that takes none any more,
        `give_back` photos that a lane had together when it ended.
        """
        loop = asyncio.get_running_loop()
        self._metrics = metrics
        self.on_free = on_free
        self._on_lost = on_lost
        self.give_back = give_back
        self._tell_end = on_end
        self.load = Load()
        self.resident_bytes = 0
        self.model: asyncio.Future[ModelReply] = loop.create_future()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended = asyncio.Event()
        self.process: subprocess.Popen[bytes] | None = None
        self._stray: asyncio.ReadTransport | None = None
        self.started = self._heard = time.monotonic()
        self.is_warm = False
        self._settings = settings
        self._control = Messages(self._on_message, self._on_end)
        self.lanes = [EngineLane(self) for _ in range(settings.image_workers)]
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
        protocols = [self._control, *(lane.messages for lane in self.lanes)]
        with ExitStack() as ours, ExitStack() as theirs:
            pairs = [_pair(ours, theirs) for _ in protocols]
            self.process = await asyncio.to_thread(_launch, [end for _, end in pairs])
            for protocol, (end, _) in zip(protocols, pairs, strict=True):
                await _connect(protocol, end)
            loop = asyncio.get_running_loop()
            self._stray, _ = await loop.connect_read_pipe(_StrayLines, self.process.stderr)
            ours.pop_all()  # the event loop has them now
        self._control.send(Start(self._settings))

    def drop(self, number: int) -> None:
        """Tell it that nobody waits for this photo any more."""
        self._control.send(Drop(number))

    def lose(self, lane: EngineLane) -> None:
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
        for messages in (self._control, *(lane.messages for lane in self.lanes)):
            messages.close()
        if self.process is not None:
            try:
                await asyncio.to_thread(self.process.wait, timeout_seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                await asyncio.to_thread(self.process.wait)
        if self._stray is not None:
            self._stray.close()

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
            for lane in self.lanes:
                self.on_free(lane)
        elif isinstance(message, Failed):
            self._fail_start(message.error)

    def _on_end(self) -> None:
        self.ended.set()
        self._fail_start(StartupError("an engine ended while it was starting"))
        self.load, self.resident_bytes, self._hung = Load(), 0, None
        for lane in reversed(self.lanes):  # each gives back what it had, before what waits
            lane.end()
            self._on_lost(lane)
        self._tell_end()

    def _fail_start(self, error: StartupError) -> None:
        for future in (self.model, self.ready):
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody may wait for it: no warning, then


class _StrayLines(asyncio.Protocol):
    """What an engine's libraries have written past its log, such as a decoder's complaints."""

    def __init__(self) -> None:
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._log(line)

    def connection_lost(self, _: Exception | None) -> None:
        """See asyncio.BaseProtocol."""
        self._log(self._rest)

    def _log(self, line: bytes) -> None:
        if line.strip():
            text = line[:MAX_LINE_BYTES].decode(errors="replace")
            logger.warning("an engine's library says", extra={"line": text})


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
        stdout=STANDARD_ERROR,
        stderr=subprocess.PIPE,
        env=environment,
        process_group=0,  # what a terminal sends is for the server, which ends the engine
    )


def _ended() -> UnavailableError:
    return UnavailableError(
        "What read this photo has ended, and is being started again.",
        retry_after_seconds=RETRY_SECONDS,
    )
