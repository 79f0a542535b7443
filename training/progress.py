"""Progress bars: lively on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

LOG_INTERVAL_SECONDS = 30.0


def progress(items: Iterable[T], title: str, total: int, *, unit: str = "it") -> tqdm[T]:
    """`items` with a bar on stderr: rate, share done, time left."""
    interactive = sys.stderr.isatty()
    return tqdm(
        items,
        title,
        total,
        unit=unit,
        leave=False if interactive else None,
        mininterval=0.2 if interactive else LOG_INTERVAL_SECONDS,
    )
