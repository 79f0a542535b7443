"""uvicorn, set up for this service: one process, one event loop, a stop that loses no reply."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import socket
import struct
import sys
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.connection import Config, Connection
from service.errors import StartupError
from service.settings import Settings
from service.shedding import Shedder
from service.state import ServiceState

if sys.platform != "win32":
    import resource

CHECK_SECONDS = 0.1
# Models, logs, listening sockets, and room for connections that are being closed.
OTHER_FILES = 256
# Of those, what is open without a client, and some to spare.
FILES_AT_REST = 32
# Where half of the bytes that may be in flight are replies that nobody takes.
CROWDED_STALL_SECONDS = 2.0

# At the stop: how long a client may take to complete a connection that it has begun, how long that
# goes on where the kernel cannot keep further ones away, and how often it is looked.
HANDSHAKE_SECONDS = 0.1
LAST_ACCEPT_SECONDS = 2.0
ACCEPT_AGAIN_SECONDS = 0.01

# In Linux's asm-generic/socket.h; Python's socket module does not name it.
SO_ATTACH_FILTER = 26

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn's server, which minds slow clients and what arrives while it stops."""

    def __init__(self, config: Config, service: ServiceState) -> None:
        super().__init__(config)
        self._connection_config = config
        self._service = service
        self._unsent_bytes = 0
        service.bodies.count_replies(lambda: self._unsent_bytes)
        service.metrics.connections.set_function(lambda: len(self.server_state.connections))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called in the signal's handler: not ready from here on."""
        self._service.lifecycle.drain()
        super().handle_exit(sig, frame)
        if self.force_exit:  # Ctrl-C once more: its lifespan is cut off, which it would log
            logging.getLogger("uvicorn.error").disabled = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections; they are checked until the server has stopped."""
        await super().startup(sockets)
        self._checking = asyncio.create_task(self._check_connections())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, take what has connected by then, answer everything, end."""
        self._service.lifecycle.drain()
        try:
            await self._stop_listening(sockets or [])
            await super().shutdown(sockets)
        finally:
            self._checking.cancel()
            if self._connection_config.shedder is not None:
                self._connection_config.shedder.end()

    async def _check_connections(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            now, connections = loop.time(), self._connections()
            stall_seconds = self._stall_seconds()
            for connection in connections:
                connection.check(now, stall_seconds)
            # Here and not when asked: each piece of each body asks.
            self._unsent_bytes = sum(connection.unsent_bytes for connection in connections)
            if (shedder := self._connection_config.shedder) is not None:
                shedder.look(now)

    def _stall_seconds(self) -> float:
        """How long a client may take nothing of its reply: less where replies take others' room."""
        limits = self._connection_config.limits
        if self._unsent_bytes > limits.max_unsent_bytes // 2:
            return min(limits.stall_seconds, CROWDED_STALL_SECONDS)
        return limits.stall_seconds

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Close the listening sockets without resetting those who have connected already.

        The kernel completes connections before they are accepted, and resets those that are left
        when the socket is closed. A copy keeps it open until the last of them has been accepted.
        """
        copies = [listener.dup() for listener in sockets]
        for listener in copies:
            let_nobody_else_in(listener)
        for server in self.servers:
            server.close()
        # Those that were accepted in this turn of the event loop become connections in the next.
        await asyncio.sleep(0)
        for listener in copies:
            with listener:
                await self._accept_all(listener)

    async def _accept_all(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        end = loop.time() + LAST_ACCEPT_SECONDS
        quiet = loop.time() + HANDSHAKE_SECONDS
        while loop.time() < min(quiet, end):
            try:
                client, _ = listener.accept()
            except OSError:  # nobody is left, but somebody may be about to complete a connection
                await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            client.setblocking(False)
            await loop.connect_accepted_socket(self._connect, client)
            quiet = loop.time() + HANDSHAKE_SECONDS

    def _connect(self) -> Connection:
        return Connection(self._connection_config, self.server_state, self.lifespan.state)

    def _connections(self) -> list[Connection]:
        return [c for c in self.server_state.connections if isinstance(c, Connection)]


def let_nobody_else_in(listener: socket.socket) -> None:
    """Connections that have begun may be completed; the kernel drops a packet that begins one.

    It is sent again a second later, and refused then. Without this, clients that keep coming would
    keep the server from stopping, and one that came just before the socket is closed gets a reset.
    Does nothing where there is no such filter, outside Linux.
    """
    if sys.platform != "linux":
        return
    instructions = (  # classic BPF; the packet begins with its TCP header
        (0x30, 0, 0, 13),  # load the byte of flags
        (0x54, 0, 0, 0x12),  # SYN and ACK of it
        (0x15, 0, 1, 0x02),  # SYN alone? else skip one
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # keep all of it
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *i) for i in instructions))
    program = struct.pack("HP", len(instructions), ctypes.addressof(code))
    with suppress(OSError):  # a sandbox that stands in for the kernel may not know it
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def make_server(app: FastAPI, settings: Settings) -> Server:
    """A server for an app of service.app.create_app; run it with a listening socket."""
    service: ServiceState = app.state.service
    settings = settings.model_copy(update={"max_connections": _possible_connections(settings)})
    shedder = None
    if settings.cors_origins is None:  # a page elsewhere can't read a refusal without its headers
        shedder = Shedder(lifecycle=service.lifecycle, metrics=service.metrics)
    config = Config(app, settings=settings, metrics=service.metrics, shedder=shedder)
    return Server(config, service)


def _possible_connections(settings: Settings) -> int:
    """max_connections, or fewer where the system does not allow so many open files.

    Beyond what is allowed, the kernel's connections would be closed without a word, those of health
    checks included.
    """
    # Both ends of their sockets, twice while one starts.
    engines = 4 * (settings.engines + settings.photo_threads)
    wanted = 2 * settings.max_connections + engines + OTHER_FILES
    allowed = _allow_files(wanted)
    if allowed >= wanted:
        return settings.max_connections
    left = (allowed - engines - FILES_AT_REST) // 2
    possible = max(1, min(left, settings.max_connections))
    logger.warning(
        "max_connections needs %d open files (ulimit -n), and %d are allowed: %d connections "
        "are taken",
        wanted,
        allowed,
        possible,
    )
    return possible


def _allow_files(wanted: int) -> int:
    """Shells allow 1024 open files where the system allows more; how many of `wanted` it does."""
    if sys.platform == "win32":
        return wanted
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY or allowed >= wanted:
        return wanted
    allowed = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    return allowed


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket bound to the address. Raises StartupError where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With its protocol spelt out: asyncio sends small replies at once (TCP_NODELAY) only on
        # sockets it knows to be TCP.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except UnicodeError as error:  # of the encoding for names of hosts
        raise StartupError(f"cannot listen on {host!r}: no name of a host") from error
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        hint = "; --port or LAN_FER_PORT takes another (0: any that is free)" if taken else ""
        raise StartupError(
            f"cannot listen on {host} port {port}: {error.strerror}{hint}"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a client reaches the socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
