"""Logging: one line an event, key=value or JSON, for this service and every library in it."""

from __future__ import annotations

import logging
import select
import sys
from http import HTTPStatus
from typing import Literal, TextIO

import structlog
from structlog.types import Processor

from service.errors import ProblemError, ServiceError

KEY_ORDER = ["time", "level", "logger", "event", "request_id"]
OURS = ("service", "training")
# Of a line, written at a time: what fits into a pipe that takes anything at all (PIPE_BUF).
PIECE_CHARACTERS = 1024
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
        self._cut = False
        self._poll = _poll_of(stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or count it."""
        if self._dropped and self._takes(0):
            dropped, self._dropped = self._dropped, 0
            self._write(_record_of_dropped(dropped))
        if self._dropped:
            self._dropped += 1
        else:
            self._write(record)

    def _write(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + self.terminator
            if self._cut:
                line, self._cut = self.terminator + line, False
            for at in range(0, len(line), PIECE_CHARACTERS):
                if not self._takes(STUCK_MS):
                    self._dropped += 1
                    self._cut = at > 0
                    return
                self.stream.write(line[at : at + PIECE_CHARACTERS])
                self.flush()
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)

    def _takes(self, milliseconds: int) -> bool:
        return self._poll is None or bool(self._poll.poll(milliseconds))


def _poll_of(stream: TextIO) -> select.poll | None:
    """What tells whether `stream` can be written to without waiting; None where it need not."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError, AttributeError):  # in memory; closed; a system without poll()
        return None
    return poll


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
