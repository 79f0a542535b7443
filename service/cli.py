"""The command `lan-fer`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

from pydantic.fields import FieldInfo

from service.app import create_app
from service.errors import StartupError
from service.logs import configure_logging
from service.server import listen, make_server, url_of
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

    def started(failure: StartupError | None) -> None:
        if failure is None:
            logger.info("ready", extra={"url": url_of(listener)})
        else:
            failures.append(failure)
            server.should_exit = True

    app = create_app(settings, on_started=started)
    server = make_server(app, settings)
    # uvicorn takes both signals while it runs, then raises them once more for whoever had them
    # before. A stop that was asked for and carried out is no failure: exit code 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    with listen(settings.host, settings.port) as listener:
        server.run(sockets=[listener])
    if failures:
        raise failures[0]


if __name__ == "__main__":
    sys.exit(main())
