"""uvicorn, set up for this service: one process, one event loop, a stop that loses no reply."""

from __future__ import annotations

import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.errors import StartupError
from service.lifecycle import Lifecycle
from service.settings import Settings


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
        http="httptools",
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
