"""What the server and an engine tell each other over sockets, and how.

A message is a head, a pickled tuple (other objects take several times longer) and, behind it, the
bytes of a photo, which need no pickling. Both ends are processes of one service: neither unpickles
what a client could have written.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from service.errors import ServiceError, StartupError
from service.observing import Load, Note
from service.pipeline import Then, Wishes
from service.schemas import ModelReply
from service.settings import Settings

HEAD = struct.Struct("<QQ")  # bytes of the pickled object, and of the photo
MAX_UNSENT_BYTES = 256 * 1024


class Start(NamedTuple):
    """To an engine, first of all: load the networks."""

    settings: Settings


class Read(NamedTuple):
    """To an engine: read the photo that follows; the answer has its number."""

    number: int
    then: Then[Any]
    wishes: Wishes
    context: dict[str, Any]
    """Of log lines: the request's id."""
    asked: float
    """When (perf_counter, one clock for all processes of a machine): what went by since, waited."""


class Drop(NamedTuple):
    """To an engine: nobody waits for this photo any more."""

    number: int


class Loaded(NamedTuple):
    """From an engine: its networks are there, but cold."""

    model: ModelReply


class Ready(NamedTuple):
    """From an engine: its networks are warm."""


class Failed(NamedTuple):
    """From an engine, its last: it cannot start."""

    error: StartupError


class Answer(NamedTuple):
    """From an engine: what came of a photo."""

    number: int
    result: Any
    error: ServiceError | None


class Health(NamedTuple):
    """From an engine, every second: what it holds, the stage that hangs, and news for metrics.

    Those of a second together: told one by one, they would cost each photo more.
    """

    load: Load
    hung: str | None
    notes: tuple[Note, ...]
    cpu_seconds: float
    """Since its start."""
    resident_bytes: int


Message = Start | Read | Drop | Loaded | Ready | Failed | Answer | Health


def _encoded(message: Message, photo: bytes) -> list[bytes]:
    pickled = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    head = HEAD.pack(len(pickled), len(photo))
    return [head, pickled, photo] if photo else [head, pickled]


class Messages(asyncio.Protocol):
    """One end of a socket on an event loop, which calls both callbacks."""

    def __init__(
        self, on_message: Callable[[Message, bytes], None], on_end: Callable[[], None]
    ) -> None:
        self._on_message = on_message
        self._on_end = on_end
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def send(self, message: Message, photo: bytes = b"") -> None:
        """Send a message; does nothing where the other end is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(_encoded(message, photo))

    def close(self) -> None:
        """Send what is left, and no more."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        # Not all of them are instances of it: uvloop's are not.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._received += data
        while len(self._received) >= HEAD.size:
            pickled, photo = HEAD.unpack_from(self._received)
            middle = HEAD.size + pickled
            if len(self._received) < middle + photo:
                return
            with memoryview(self._received) as view:
                message: Message = pickle.loads(view[HEAD.size : middle])
                carried = bytes(view[middle : middle + photo])
            del self._received[: middle + photo]
            self._on_message(message, carried)

    def connection_lost(self, _: Exception | None) -> None:
        """See asyncio.BaseProtocol."""
        self._on_end()


class BlockingMessages:
    """One end of a socket, for a thread that has nothing else to wait for."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._unsent: list[bytes] = []
        self._sending = threading.Lock()
        self._flushes = 0
        self._late: int | None = None

    def has_more(self) -> bool:
        """Whether a message has come, or its beginning. Raises OSError as `flush`."""
        try:
            return bool(self._end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False

    def put(self, message: Message) -> None:
        """Have a message sent by the next `flush`, or now where there is much to send."""
        pieces = _encoded(message, b"")
        with self._sending:
            self._unsent += pieces
            is_much = sum(map(len, self._unsent)) > MAX_UNSENT_BYTES
        if is_much:
            self.flush()

    def flush(self) -> None:
        """Send what was put; on any thread. Raises OSError where the other end is gone."""
        if self._unsent:
            with self._sending:
                self._end.sendall(b"".join(self._unsent))
                self._unsent.clear()
                self._flushes += 1

    def flush_late(self) -> None:
        """Send what was put before the last call of this and not sent since; raises as `flush`."""
        if self._flushes == self._late:
            self.flush()
        self._late = self._flushes if self._unsent else None

    def receive(self) -> tuple[Message, bytes] | None:
        """The next message and its photo, None at the end."""
        head = self._exactly(HEAD.size)
        if head is None:
            return None
        pickled, photo = HEAD.unpack(head)
        body = self._exactly(pickled + photo)
        if body is None:
            return None
        with memoryview(body) as view:
            return _decoded(view[:pickled]), bytes(view[pickled:])

    def _exactly(self, count: int) -> bytearray | None:
        received = bytearray(count)
        with memoryview(received) as view:
            done = 0
            while done < count:
                step = self._end.recv_into(view[done:], count - done, socket.MSG_WAITALL)
                if not step:
                    return None
                done += step
        return received


def _decoded(pickled: memoryview) -> Message:
    message: Message = pickle.loads(pickled)
    return message
