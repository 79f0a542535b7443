"""Refusals must not take the CPU that accepted photos need, however many there are."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

# Of one core, for everything that the event loop does: from here on refused clients are paced.
BUSY_SHARE = 0.3
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.0125, 0.1
# Refusals a second from which on they are gathered.
MANY_A_SECOND = 100


class Pacer:
    """How refusals and accepted photos share the CPU; for the event loop's thread alone."""

    def __init__(self) -> None:
        self.pause_seconds = 0.0
        """How long nothing more is read from a client after a refusal.

        A client that waits before it tries again, as Retry-After asks, does not notice. Many that
        do not would otherwise be refused as fast as the event loop can, while engines on the same
        cores starve.
        """
        self._looked_at, self._cpu_seconds = time.monotonic(), time.thread_time()
        self._gathers = False

    def look(self, *, refused: int, is_full: bool = False) -> None:
        """Called several times a second, with the refusals of photos since the last time.

        Where the service `is_full`, newcomers may be refused, too.
        """
        now, cpu_seconds = time.monotonic(), time.thread_time()
        elapsed, used = now - self._looked_at, cpu_seconds - self._cpu_seconds
        self._looked_at, self._cpu_seconds = now, cpu_seconds
        busy = (refused > 0 or is_full) and used > BUSY_SHARE * elapsed
        self.pause_seconds = next_pause(self.pause_seconds, busy=busy)
        gathers = refused >= MANY_A_SECOND * elapsed > 0
        if gathers != self._gathers:
            self._gathers = gathers
            let_wakes_gather(gathers)


def next_pause(seconds: float, *, busy: bool) -> float:
    """Twice as long while the event loop is too busy, half as long again while it is not."""
    if busy:
        return min(max(2 * seconds, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
    return 0.0 if seconds <= FIRST_PAUSE_SECONDS else seconds / 2


def let_wakes_gather(gather: bool) -> None:
    """Whether this thread, once woken, lets others finish their turn of the core (Linux).

    A refusal that takes the core from an engine at once costs the switch and, with it, cold caches;
    those of the few milliseconds of a turn share them. Does nothing under a policy that somebody
    has chosen for the service. Threads that begin meanwhile keep it; they give way anyway.
    """
    if sys.platform != "linux":
        return
    before, after = os.SCHED_OTHER, os.SCHED_BATCH
    if not gather:
        before, after = after, before
    with suppress(OSError):  # a sandbox may not allow it
        if os.sched_getscheduler(0) == before:
            os.sched_setscheduler(0, after, os.sched_param(0))
