"""What a process that reads photos does at its start, whether it also serves or is an engine."""

from __future__ import annotations

import gc
import logging
import sys

import cv2

from service.errors import ServiceError, StartupError
from service.memory import keep_resident_memory_low

# A thread that comes back from a network waits for Python until another lets go of it, which it is
# asked to after so long; with Python's own 5 ms, cores stood still more often under load.
SWITCH_SECONDS = 0.0005

logger = logging.getLogger(__name__)


def prepare_process() -> None:
    """Set allocator, Python and OpenCV up for many photos side by side."""
    keep_resident_memory_low()
    sys.setswitchinterval(SWITCH_SECONDS)
    # To share one photo among threads of OpenCV's takes more CPU time.
    cv2.setNumThreads(1)


def keep_what_is_there() -> None:
    """Call it once ready: full collections then take 1 ms in place of 75, and everything waits."""
    gc.collect()
    gc.freeze()


def startup_error(error: Exception) -> StartupError:
    """Why the service cannot start, in one line; what nobody expected is logged."""
    if isinstance(error, StartupError):
        return error
    if isinstance(error, ServiceError):
        return StartupError(f"a network failed in its first run: {_causes(error)}")
    # A start that fails must never look like a slow one.
    logger.error("unexpected error while starting", exc_info=error)
    return StartupError(f"unexpected error while starting: {_causes(error)}")


def _causes(error: BaseException | None) -> str:
    """The first line of the error and of each of its causes."""
    lines = []
    while error is not None:
        lines.append(next(iter(str(error).splitlines()), type(error).__name__))
        error = error.__cause__
    return ": ".join(lines)
