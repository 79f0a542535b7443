"""`lan-fer serve`: the REST service."""

from __future__ import annotations

import argparse
import logging
import os
import signal

from service.commands.flags import add_settings, given_settings
from service.errors import StartupError
from service.logs import configure_logging
from service.settings import Settings, load_settings

SUMMARY = "start the REST service"

logger = logging.getLogger(__name__)


def add_parser(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting."""
    parser.usage = "lan-fer serve [--SETTING VALUE ...]"  # all of them would fill a screen
    parser.description = (
        "Start the REST service. Each flag can also be given as an environment variable, named in "
        "brackets."
    )
    parser.epilog = "example:\n  lan-fer serve --port 8080 --max-faces 8 --log-format json"
    add_settings(parser, Settings.model_fields)


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop. Raises StartupError where the service cannot start."""
    _open_missing_streams()
    # Until the server has its own: the first process of a container ignores them otherwise.
    for number in _stopping_signals():
        signal.signal(number, _end_at_once)
    settings = load_settings(**given_settings(arguments))
    configure_logging(settings.log_level, settings.log_format)
    serve(settings)
    return 0


def _open_missing_streams() -> None:
    """Started with `>&- 2>&-`, a socket would get their numbers, and what is written to them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the lowest number that is free: this one
            os.open(os.devnull, os.O_RDWR)


def _stopping_signals() -> tuple[signal.Signals, ...]:
    """SIGHUP too, of a terminal that closes; but not where `nohup` has it ignored."""
    stopping = (signal.SIGTERM, signal.SIGINT)
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up is None or signal.getsignal(hang_up) == signal.SIG_IGN:
        return stopping
    return (*stopping, hang_up)


def _end_at_once(*_: object) -> None:
    os._exit(0)  # an exception could be taken for another where it happens to be raised


def serve(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP. Raises StartupError where the service cannot start."""
    # Not at the top: the other commands, --help and completion do without the web framework.
    from service.app import create_app
    from service.server import listen, make_server, url_of
    from service.starting import keep_what_is_there, prepare_process

    prepare_process()
    failures: list[StartupError] = []

    def started(failure: StartupError | None) -> None:
        if failure is None:
            keep_what_is_there()
            logger.info("ready", extra={"url": url_of(listener)})
        else:
            failures.append(failure)
            server.should_exit = True

    app = create_app(settings, on_started=started)
    server = make_server(app, settings)
    # uvicorn takes the first two while it runs, then raises them once more for whoever had them
    # before. A stop that was asked for and carried out is no failure: exit code 0.
    for number in _stopping_signals():
        signal.signal(number, server.handle_exit)
    with listen(settings.host, settings.port) as listener:
        server.run(sockets=[listener])
    if failures:
        raise failures[0]
