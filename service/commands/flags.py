"""What several commands share: flags for settings, and words for the person at the terminal."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn

from pydantic.fields import FieldInfo

from service.errors import ImageFileError
from service.hints import did_you_mean
from service.printable import printable
from service.settings import ENV_PREFIX, Settings
from service.writing import STANDARD_OUTPUT, written

# What matters to a command that loads the networks and serves nobody.
NETWORK_SETTINGS = (
    "model_path",
    "detector_path",
    "provider",
    "precision",
    "intra_op_threads",
    "inference_workers",
    "image_workers",
    "max_detector_batch",
    "max_classifier_batch",
    "max_body_bytes",
    "max_image_pixels",
    "max_faces",
    "min_score",
    "search",
)
MAX_FAILURES_SHOWN = 50
MAX_NAME = 1 << 20  # characters; a system takes no more than some thousand


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the examples."""


class Parser(argparse.ArgumentParser):
    """Says of an option that it does not have which one may have been meant.

    A command's own parser does: argparse would leave that to the one above, with its usage.
    """

    _words: Sequence[str] = ()  # what it was given

    def parse_known_args(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does, but nothing may be left over."""
        self._words = sys.argv[1:] if args is None else list(args)
        parsed, left = super().parse_known_args(args, namespace)
        if left:
            hints = map(self._hint, left)
            self.error(f"unrecognized arguments: {' '.join(left)}{next(filter(None, hints), '')}")
        return parsed, left

    def error(self, message: str) -> NoReturn:
        """As argparse does, but a flag that was mistyped goes before what is missing for it."""
        if message.startswith("the following arguments are required"):
            for word in self._words:
                if hint := self._hint(word):
                    message = f"unrecognized arguments: {word}{hint}"
                    break
        super().error(printable(message))

    def _hint(self, word: str) -> str:
        """Which flag may be meant; empty for one of this parser's, shortened ones too."""
        name = word.partition("=")[0]
        known = self._option_string_actions
        if not name.startswith("--") or any(flag.startswith(name) for flag in known):
            return ""
        return did_you_mean(name, known)


def add_settings(parser: argparse._ActionsContainer, names: Iterable[str]) -> None:
    """One flag for each of the settings named; only those given end up in the namespace."""
    for name in names:
        parser.add_argument(
            "--" + name.replace("_", "-"),
            metavar="VALUE",
            default=argparse.SUPPRESS,
            help=_help(name, Settings.model_fields[name]),
        )


def given_settings(arguments: argparse.Namespace) -> dict[str, str]:
    """The settings that flags were given for; the others come from environment or defaults."""
    given = vars(arguments)
    return {name: given[name] for name in Settings.model_fields if name in given}


def _help(name: str, field: FieldInfo) -> str:
    default = "unset" if field.default is None else field.default
    text = f"{field.description} Default: {default}. [{ENV_PREFIX}{name.upper()}]"
    return text.replace("%", "%%")


def seconds_above_0(text: str) -> float:
    """A flag's value. Raises argparse.ArgumentTypeError."""
    return _seconds(text, "above 0", lambda seconds: 0 < seconds < math.inf)


def seconds_from_0(text: str) -> float:
    """A flag's value, which may be 0. Raises argparse.ArgumentTypeError."""
    return _seconds(text, "from 0 on", lambda seconds: 0 <= seconds < math.inf)


def _seconds(text: str, which: str, fits: Callable[[float], bool]) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not fits(seconds):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds {which}")
    return seconds


def say(text: str, *, alarm: bool = False) -> None:
    """One line for the person at the terminal: on stderr, away from the answers.

    What is not printable in it is escaped: names of files are in it, and may hold anything. An
    alarm is red on a terminal that may be coloured (https://no-color.org).
    """
    line = printable(text)
    if alarm and sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        line = f"\x1b[31m{line}\x1b[0m"
    sys.stderr.write(line + "\n")


def names_on_stdin() -> Iterator[str]:
    """Lines of standard input; none where it is closed. Raises ImageFileError for endless ones."""
    if sys.stdin is None:
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors=sys.getfilesystemencodeerrors())  # names need not be UTF-8
    while line := sys.stdin.readline(MAX_NAME):
        if len(line) == MAX_NAME:
            raise ImageFileError(
                f"Standard input holds a line of {MAX_NAME} characters or more; names of files are "
                "wanted, one a line."
            )
        yield line


def answer(text: str) -> None:
    """What was asked for, on standard output. Raises OutputError where it cannot be written."""
    with written(STANDARD_OUTPUT):
        print(text, flush=True)


def sentence(summary: str) -> str:
    """A command's summary as its description; other capitals stay."""
    return f"{summary[0].upper()}{summary[1:]}."


def report(failures: Sequence[tuple[str, str]], total: int) -> int:
    """Say which of `total` photos could not be read, and why; the command's exit code."""
    if not failures:
        return 0
    photos = "photo" if total == 1 else "photos"
    say(f"{len(failures)} of {total} {photos} could not be read:", alarm=True)
    for source, detail in failures[:MAX_FAILURES_SHOWN]:
        # A file that cannot be read names itself.
        say(f"  {source}: {detail.removeprefix(f'{source}: ')}")
    if len(failures) > MAX_FAILURES_SHOWN:
        say(f"  and {len(failures) - MAX_FAILURES_SHOWN} more")
    return 1
