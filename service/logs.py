"""Logging: one line an event, key=value or JSON, for this service and every library in it."""

from __future__ import annotations

import logging
import os
import select
import stat
import sys
import time
from array import array
from http import HTTPStatus
from typing import Literal, TextIO

import structlog
from structlog.types import Processor

from service.errors import ProblemError, ServiceError

if sys.platform != "win32":
    import fcntl
    import termios

KEY_ORDER = ["time", "level", "logger", "event", "request_id"]
OURS = ("service", "training")
# How long a line is waited with, once, before lines are dropped.
STUCK_MS = 20
# They tell what our own lines tell already.
QUIET = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio")


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines; while nobody takes them, they are dropped and counted.

    A pipe whose reader stands still would stop whoever logs: the event loop, and with it all.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._dropped = 0
        self._outlet = _outlet_of(stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or count it."""
        try:
            lines = self.format(record) + self.terminator
            if self._dropped:
                lines = self.format(_record_of_dropped(self._dropped)) + self.terminator + lines
            wait = not self._dropped
            if self._outlet and not self._outlet.takes(len(lines.encode()), wait=wait):
                self._dropped += 1
                return
            self._dropped = 0
            self.stream.write(lines)
            self.flush()
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)


class _Outlet:
    """Tells whether a line can be written, in one piece, to a pipe, a terminal or a socket."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._capacity = _pipe_bytes(descriptor)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def takes(self, count: int, *, wait: bool) -> bool:
        """Whether so many bytes would be taken at once, or with `wait` after some milliseconds."""
        for _ in range(STUCK_MS if wait else 0):
            if self._has_room(count):
                return True
            time.sleep(0.001)
        return self._has_room(count)

    def _has_room(self, count: int) -> bool:
        if not self._poll.poll(0):
            return False
        # What fits into a page goes into a pipe as a whole wherever it takes anything at all.
        if count <= select.PIPE_BUF or self._capacity is None:
            return True
        held = array("i", [0])
        fcntl.ioctl(self._descriptor, termios.FIONREAD, held)
        # Pages may be half empty: two lines share one only where both fit.
        return not held[0] or 2 * held[0] + count + 2 * select.PIPE_BUF <= self._capacity


def _outlet_of(stream: TextIO) -> _Outlet | None:
    """None where writing never waits, and where the system cannot tell."""
    try:
        descriptor = stream.fileno()
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return _Outlet(descriptor)
    except (OSError, ValueError, AttributeError):  # in memory; closed; a system without poll()
        return None


def _pipe_bytes(descriptor: int) -> int | None:
    """How much a pipe holds; None of what is none."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
    except (OSError, AttributeError):  # Linux alone tells
        return None


def _record_of_dropped(count: int) -> logging.LogRecord:
    record = logging.LogRecord(
        __name__, logging.WARNING, __file__, 0, "lines dropped: nobody took them", None, None
    )
    record.lines = count
    return record


def log_fault(logger: logging.Logger, error: ServiceError) -> None:
    """Log an error that is a fault of ours, with its cause, which no client is told."""
    if not isinstance(error, ProblemError) or error.__cause__ is None:
        return
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("%s", error.slug, exc_info=error)


def configure_logging(
    level: Literal["debug", "info", "warning", "error"],
    style: Literal["plain", "json"],
    *,
    stream: TextIO | None = None,
) -> None:
    """Send every log record to `stream`, or standard error, formatted; call it once a process."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.processors.LogfmtRenderer(key_order=KEY_ORDER, drop_missing=True)
    )
    handler = LineHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in OURS:
        logging.getLogger(name).setLevel(root.level)
    # Not for all: what Pillow tells those who debug it is what a photo's metadata say.
    root.setLevel(max(logging.INFO, root.level))
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
