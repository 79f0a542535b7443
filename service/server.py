"""uvicorn, set up for this service: one process, one event loop, a stop that loses no reply."""

from __future__ import annotations

import socket
import uuid
from http import HTTPStatus
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import (
    HeadersTooLargeError,
    MalformedRequestError,
    ProblemError,
    StartupError,
)
from service.lifecycle import Lifecycle
from service.problems import MEDIA_TYPE, problem_of
from service.settings import Settings

# Bytes that may come in without being part of a body. The app holds headers to a setting once they
# are complete; this bounds those that never are, with room for the chunks sockets are read in.
MAX_BYTES_BESIDE_BODY = 1024 * 1024


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which neither bounds headers nor answers bad HTTP with a problem."""

    _bytes_beside_body = 0

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self._bytes_beside_body += len(data)
        super().data_received(data)
        if self._bytes_beside_body > MAX_BYTES_BESIDE_BODY and not self.transport.is_closing():
            self._refuse(HeadersTooLargeError("The headers do not end."))

    def on_message_begin(self) -> None:
        """A request line begins."""
        self._bytes_beside_body = 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._bytes_beside_body = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Called for bytes that are no HTTP request."""
        self._refuse(MalformedRequestError(msg))

    def _refuse(self, error: ProblemError) -> None:
        body = problem_of(error, uuid.uuid4().hex).model_dump_json(exclude_none=True).encode()
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
            f"content-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class Server(uvicorn.Server):
    """Not ready from the signal on, rather than from the moment the last connection closes."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called in the signal's handler."""
        self._lifecycle.drain()
        super().handle_exit(sig, frame)


def make_server(app: FastAPI, settings: Settings) -> Server:
    """A server for an app of service.app.create_app; run it with a listening socket."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    return Server(config, app.state.service.lifecycle)


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
    except OSError as error:
        raise StartupError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a client reaches the socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
