"""The command `lan-fer`."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic.fields import FieldInfo

from service.app import create_app
from service.errors import StartupError
from service.lifecycle import Lifecycle
from service.logs import configure_logging
from service.settings import ENV_PREFIX, Settings, load_settings

EXIT_FAILURE = 1

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = vars(build_parser().parse_args(arguments))
    del given["command"]
    try:
        settings = load_settings(**given)
        configure_logging(settings.log_level, settings.log_format)
        serve(settings)
    except StartupError as error:
        sys.stderr.write(f"lan-fer: {error.detail}\n")
        return EXIT_FAILURE
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser; `serve` has one flag for each setting."""
    parser = argparse.ArgumentParser(prog="lan-fer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve_parser = commands.add_parser(
        "serve",
        help="start the REST service",
        description="Start the REST service. Each flag can also be given as an environment "
        "variable, named in brackets.",
        # Only flags that were given: the others come from the environment or the defaults.
        argument_default=argparse.SUPPRESS,
    )
    for name, field in Settings.model_fields.items():
        serve_parser.add_argument(
            "--" + name.replace("_", "-"), metavar="VALUE", help=_help(name, field)
        )
    return parser


def _help(name: str, field: FieldInfo) -> str:
    default = "unset" if field.default is None else field.default
    text = f"{field.description} Default: {default}. [{ENV_PREFIX}{name.upper()}]"
    return text.replace("%", "%%")


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises StartupError where the service cannot start."""
    failures: list[StartupError] = []

    def give_up(error: StartupError) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(settings, on_start_failure=give_up)
    server = _Server(_config(app, settings), app.state.service.lifecycle)
    # uvicorn takes both signals while it runs, then raises them once more for whoever had them
    # before. A stop that was asked for and carried out is no failure: exit code 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    with listen(settings.host, settings.port) as listener:
        host, port = listener.getsockname()[:2]
        logger.info(
            "listening", extra={"url": f"http://{f'[{host}]' if ':' in host else host}:{port}"}
        )
        server.run(sockets=[listener])
    if failures:
        raise failures[0]


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises StartupError where the address cannot be had."""
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


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.drain_seconds,
    )


class _Server(uvicorn.Server):
    """Not ready from the signal on, rather than from the moment the last connection closes."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._lifecycle.drain()
        super().handle_exit(sig, frame)


if __name__ == "__main__":
    sys.exit(main())
