"""Logging: one line an event, key=value or JSON, for this service and every library in it."""

from __future__ import annotations

import logging
import sys
from http import HTTPStatus
from typing import Literal, TextIO

import structlog
from structlog.types import Processor

from service.errors import ProblemError, ServiceError

KEY_ORDER = ["time", "level", "logger", "event", "request_id"]
OURS = ("service", "training")
# They tell what our own lines tell already.
QUIET = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio")


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
    handler = logging.StreamHandler(stream or sys.stderr)
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
