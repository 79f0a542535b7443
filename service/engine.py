"""An engine: a process that loads the networks and reads photos for the server beside it.

`python -m service.engine CONTROL LANE...`, each one end of a socket pair of the server, which
starts it (service/engine_link.py). Each lane is a thread that takes photos from its socket and
answers on it, with no other thread in between; photos that came together are answered together. The
engine ends when the server closes its ends or is gone. Its log goes to standard output: what is
written to standard error comes from libraries, and the server logs it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import uvloop
from structlog.contextvars import bound_contextvars

from service.budgets import LanePixels
from service.errors import ServiceError, UnexpectedError
from service.logs import configure_logging, log_fault
from service.memory import resident_bytes
from service.messages import (
    Answer,
    BlockingMessages,
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
from service.model_info import log_networks, model_info
from service.observing import Journal, Load
from service.pipeline import Pipeline, Task, load_networks
from service.settings import Settings
from service.starting import keep_what_is_there, prepare_process, startup_error
from service.watch import StageWatch

HEALTH_SECONDS = 1.0
# An answer waits for those to the photos that came with its own, for once to twice as long at most.
HELD_SECONDS = 0.05
STOP_SECONDS = 2.0  # for the last runs, whose waiters are gone
EARLY_DROPS = 4096
FAILED = 70  # exit code: an internal error (EX_SOFTWARE)

logger = logging.getLogger(__name__)


class _Lanes:
    """Threads that read photos, each from its own socket."""

    def __init__(
        self,
        pipeline: Pipeline,
        pixels: LanePixels,
        ends: Sequence[socket.socket],
    ) -> None:
        self._pipeline = pipeline
        self._pixels = pixels
        self._tasks: dict[int, Task] = {}
        # Numbers dropped before their photo was here: it comes by another socket.
        self._dropped: dict[int, None] = {}
        self._dropping = threading.Lock()
        self._servers = [BlockingMessages(end) for end in ends]
        # Daemons: a network that hangs must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._work, args=(server,), daemon=True)
            for server in self._servers
        ]

    def start(self) -> None:
        """Read photos from now on."""
        for thread in self._threads:
            thread.start()

    def drop(self, number: int) -> None:
        """Go no further with this photo."""
        with self._dropping:
            if task := self._tasks.get(number):
                task.is_dropped = True
            else:
                self._dropped[number] = None
                if len(self._dropped) > EARLY_DROPS:
                    del self._dropped[next(iter(self._dropped))]

    def flush_late(self) -> None:
        """Send the answers that have waited for others since the last call."""
        for server in self._servers:
            with suppress(OSError):  # it is gone
                server.flush_late()

    def join(self, timeout_seconds: float) -> None:
        """Wait for the photos that are being read, for so long each."""
        for thread in self._threads:
            thread.join(timeout_seconds)

    def _is_crowded(self) -> bool:
        return len(self._tasks) >= len(self._threads)

    def _work(self, server: BlockingMessages) -> None:
        try:
            while (received := server.receive()) is not None:
                message, photo = received
                assert isinstance(message, Read), "lanes get photos"
                server.put(self._answer(message, photo))
                del received, photo  # while it waits, an idle lane keeps nothing
                if not server.has_more():
                    server.flush()
        except (BrokenPipeError, ConnectionResetError):  # the server is gone
            return
        except BaseException:  # noqa: BLE001 - it ends the process
            # A lane less would never be noticed; an engine that ends is started again.
            try:
                logger.critical("a lane failed", exc_info=True)
                server.flush()
            finally:
                os._exit(FAILED)

    def _answer(self, message: Read, photo: bytes) -> Answer:
        task = self._pipeline.task(photo, message.wishes, message.asked)
        with self._dropping:
            self._tasks[message.number] = task
            task.is_dropped = message.number in self._dropped
            self._dropped.pop(message.number, None)
        result, error = None, None
        with bound_contextvars(**message.context):
            try:
                result = self._pipeline.read_here(
                    task, message.then, pixels=self._pixels, is_crowded=self._is_crowded
                )
            except ServiceError as caught:
                log_fault(logger, caught)  # the cause stays here: it does not go to the server
                error = caught.with_traceback(None)
            except Exception:  # the edge of the process
                logger.exception("unexpected error")
                error = UnexpectedError()
            finally:
                del self._tasks[message.number]
        try:
            return Answer(message.number, result, error)
        finally:
            del error, result  # a cause of the error holds this frame, which would hold the error


class _Engine:
    """One engine, from the server's first message to the end of the control socket."""

    def __init__(self, lane_ends: Sequence[socket.socket]) -> None:
        self.control = Messages(self._on_message, self._on_end)
        self._lane_ends = lane_ends
        self._watch = StageWatch(give_way=True)
        self._journal = Journal()
        self._lanes: _Lanes | None = None
        self._starting: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Read photos until the server is gone, then finish."""
        await self._ended.wait()
        if self._starting is not None:
            self._starting.cancel()
        if self._lanes is not None:
            await asyncio.to_thread(self._lanes.join, STOP_SECONDS)

    def _on_message(self, message: Message, _: bytes) -> None:
        if isinstance(message, Start):
            self._starting = asyncio.create_task(self._live(message.settings))
        elif isinstance(message, Drop) and self._lanes is not None:
            self._lanes.drop(message.number)

    def _on_end(self) -> None:
        self._ended.set()

    async def _live(self, settings: Settings) -> None:
        """Start, then tell how it is; an engine that can't do the one or the other ends."""
        pixels = LanePixels(settings.max_in_flight_pixels)
        try:
            pipeline = await self._start(settings, pixels)
            self.control.send(Ready())
            self._flushing = asyncio.create_task(self._flush())
            await self._tell_health(pipeline, pixels, settings.stage_limit_ms / 1000)
        except Exception as error:  # noqa: BLE001 - the edge of the process
            self.control.send(Failed(startup_error(error)))
            self.control.close()

    async def _start(self, settings: Settings, pixels: LanePixels) -> Pipeline:
        configure_logging(settings.log_level, settings.log_format, stream=sys.stdout)
        networks = await asyncio.to_thread(load_networks, settings)
        log_networks(networks)
        self.control.send(Loaded(model_info(networks)))
        await asyncio.to_thread(networks.warm_up)
        pipeline = Pipeline(networks, settings, observer=self._journal, watch=self._watch)
        pipeline.start_networks()
        self._lanes = _Lanes(pipeline, pixels, self._lane_ends)
        keep_what_is_there()
        self._lanes.start()
        return pipeline

    async def _flush(self) -> None:
        while self._lanes is not None:
            await asyncio.sleep(HELD_SECONDS)
            self._lanes.flush_late()

    async def _tell_health(
        self, pipeline: Pipeline, pixels: LanePixels, stage_limit_seconds: float
    ) -> None:
        while True:
            await asyncio.sleep(min(HEALTH_SECONDS, stage_limit_seconds / 4))
            load = pipeline.load + Load(pixels=pixels.used)
            hung = self._watch.hung(stage_limit_seconds)
            notes = self._journal.take()
            self.control.send(Health(load, hung, notes, time.process_time(), resident_bytes()))


async def _serve(control: socket.socket, lanes: Sequence[socket.socket]) -> None:
    engine = _Engine(lanes)
    control.setblocking(False)
    await asyncio.get_running_loop().create_connection(lambda: engine.control, sock=control)
    await engine.run()


def main() -> None:
    """Read photos for the server at the other ends of the sockets that are given."""
    # A terminal sends them to the server too, which then ends the engine when all is answered.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    prepare_process()
    control, *lanes = (socket.socket(fileno=int(argument)) for argument in sys.argv[1:])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(control, lanes))


if __name__ == "__main__":
    main()
