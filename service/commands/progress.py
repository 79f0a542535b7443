"""A bar on stderr: share done, rate, time left. None where nobody would see it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Protocol


class Bar(Protocol):
    """What a command tells its bar."""

    def update(self, n: int = 1) -> object:
        """`n` more are done."""


class _NoBar:
    def update(self, n: int = 1) -> None:
        """Nobody is looking."""


@contextmanager
def progress(total: int, unit: str, *, done: int = 0) -> Iterator[Bar]:
    """A bar of `total` units, of which `done` were done before; only on a terminal.

    Needs tqdm, of the extra `cli`; without it there is none.
    """
    if not (sys.stderr.isatty() and find_spec("tqdm")):
        yield _NoBar()
        return
    from tqdm import tqdm

    with tqdm(total=total, initial=done, unit=" " + unit, leave=False, smoothing=0.1) as bar:
        yield bar
