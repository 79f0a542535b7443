"""Refused clients that come back at once must not take the CPU that accepted photos need."""

from __future__ import annotations

import time

# Of one core, for everything that the event loop does: from here on refused clients are paced.
BUSY_SHARE = 0.3
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.0125, 0.1


class Pacer:
    """How long nothing more is read from a client after a refusal.

    A client that waits before it tries again, as Retry-After asks, does not notice. Many that do
    not would otherwise be refused as fast as the event loop can, while engines on the same cores
    starve.
    """

    def __init__(self) -> None:
        self.pause_seconds = 0.0
        self._looked_at, self._cpu_seconds = time.monotonic(), time.thread_time()

    def look(self, *, is_shedding: bool) -> None:
        """Lengthen or shorten the pause; called several times a second by the event loop."""
        now, cpu_seconds = time.monotonic(), time.thread_time()
        elapsed, used = now - self._looked_at, cpu_seconds - self._cpu_seconds
        self._looked_at, self._cpu_seconds = now, cpu_seconds
        self.pause_seconds = next_pause(
            self.pause_seconds, busy=is_shedding and used > BUSY_SHARE * elapsed
        )


def next_pause(seconds: float, *, busy: bool) -> float:
    """Twice as long while the event loop is too busy, half as long again while it is not."""
    if busy:
        return min(max(2 * seconds, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
    return 0.0 if seconds <= FIRST_PAUSE_SECONDS else seconds / 2
