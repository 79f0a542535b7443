"""The command `lan-fer`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version
from importlib.util import find_spec
from types import ModuleType

from service.commands import bench, bulk, model, predict, serve
from service.commands.flags import HelpFormatter, Parser, say
from service.errors import ServiceError, StartupError

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130  # as a shell says of a command that Ctrl-C ended
EXIT_BROKEN_PIPE = 141
COMMANDS: dict[str, ModuleType] = {
    "serve": serve,
    "predict": predict,
    "bulk": bulk,
    "model": model,
    "bench": bench,
}
GROUPS = "lan_fer.commands"
"""Entry points of packages that bring commands of their own: training."""

EXAMPLES = """examples:
  lan-fer serve --port 8080
  lan-fer predict photos/ --output answers.csv
  lan-fer predict clip.mp4 --output clip.csv --timeline clip.png
  lan-fer model info

shell completion (needs the extra `cli`):
  eval "$(register-python-argcomplete lan-fer)"
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        group = _groups().get(given[0]) if given else None
        if group is None:
            return _run(given)
        if not _has_torch():
            raise StartupError(f"{group.name} needs torch, which serving does without: make setup")
        code: int = group.load()(given[1:])
        return code
    except ServiceError as error:
        say(f"lan-fer: {error.detail}", alarm=True)
        _drop_unwritten()
        return EXIT_FAILURE
    except KeyboardInterrupt:
        say("lan-fer: stopped")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the answers has enough, as `head` has.
        _drop_unwritten()
        return EXIT_BROKEN_PIPE


def _drop_unwritten() -> None:
    """What stdout does not take has been told of; Python would complain once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(given: list[str]) -> int:
    parser = build_parser()
    if find_spec("argcomplete"):
        import argcomplete

        argcomplete.autocomplete(parser)
    options = parser.parse_args(given)
    code: int = COMMANDS[options.command].run(options)
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; `serve` has one flag for each setting."""
    parser = Parser(
        prog="lan-fer",
        description="Reads facial expressions from photos and shows where it looked.",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lan-fer {version('lan-fer')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        module.add_parser(
            commands.add_parser(name, help=module.SUMMARY, formatter_class=HelpFormatter)
        )
    for name in _groups() if _has_torch() else ():
        commands.add_parser(name, help=f"commands of its own: lan-fer {name} --help")
    return parser


def _groups() -> dict[str, EntryPoint]:
    """Groups of commands that other packages bring."""
    return {point.name: point for point in entry_points(group=GROUPS)}


def _has_torch() -> bool:
    """Whether those groups can run: without torch their code is there, but not what it needs."""
    return find_spec("torch") is not None


if __name__ == "__main__":
    sys.exit(main())
