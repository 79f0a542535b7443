"""What several commands share: flags for settings, and words for the person at the terminal."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import IO

from pydantic.fields import FieldInfo

from service.hints import did_you_mean
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


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the examples."""


class Parser(argparse.ArgumentParser):
    """Says of an option that it does not have which one may have been meant.

    A command's own parser does: argparse would leave that to the one above, with its usage.
    """

    def parse_known_args(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does, but nothing may be left over."""
        parsed, left = super().parse_known_args(args, namespace)
        if left:
            named = (word.partition("=")[0] for word in left if word.startswith("--"))
            hints = (did_you_mean(name, self._option_string_actions) for name in named)
            self.error(f"unrecognized arguments: {' '.join(left)}{next(filter(None, hints), '')}")
        return parsed, left


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


def say(text: str) -> None:
    """One line for the person at the terminal: on stderr, away from the answers."""
    sys.stderr.write(text + "\n")


def answer(text: str) -> None:
    """What was asked for, on standard output. Raises OutputError where it cannot be written."""
    with written(STANDARD_OUTPUT):
        print(text, flush=True)


def sentence(summary: str) -> str:
    """A command's summary as its description; other capitals stay."""
    return f"{summary[0].upper()}{summary[1:]}."


def red(text: str, stream: IO[str]) -> str:
    """`text` in red on a terminal that may be coloured (https://no-color.org)."""
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[31m{text}\x1b[0m"


def report(failures: Sequence[tuple[str, str]], total: int) -> int:
    """Say which of `total` photos could not be read, and why; the command's exit code."""
    if not failures:
        return 0
    photos = "photo" if total == 1 else "photos"
    say(red(f"{len(failures)} of {total} {photos} could not be read:", sys.stderr))
    for source, detail in failures[:MAX_FAILURES_SHOWN]:
        # A file that cannot be read names itself.
        say(f"  {source}: {detail.removeprefix(f'{source}: ')}")
    if len(failures) > MAX_FAILURES_SHOWN:
        say(f"  and {len(failures) - MAX_FAILURES_SHOWN} more")
    return 1
