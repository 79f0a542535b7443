"""How long a connection waits for its client, and what happens then."""

from __future__ import annotations

from collections.abc import Callable


class Patience:
    """One wait at a time. All moments are those of the event loop's clock, in seconds."""

    def __init__(self) -> None:
        self.since: float | None = None
        """When the wait began; None while the client waits for us."""
        self._end: tuple[float, Callable[[], None]] | None = None
        """When it is over, and what is called then."""
        self._seen_late = False

    def wait(self, now: float, seconds: float, on_late: Callable[[], None]) -> None:
        """Wait from `now` on for so long, then call `on_late`; in place of any wait before."""
        self.since, self._end = now, (now + seconds, on_late)
        self._seen_late = False

    def wait_without_end(self, now: float) -> None:
        """Wait from `now` on, while somebody else minds how long."""
        self.since, self._end = now, None

    def stop(self) -> None:
        """What was waited for is there, or will never be."""
        self.since, self._end = None, None

    def check(self, now: float) -> None:
        """Call what is to happen where the wait is over; called several times a second."""
        if self._end is None or now < self._end[0]:
            return
        # Where the whole process stood still, what the client sent in time is read only now, after
        # this check: the next one ends what is still late.
        if not self._seen_late:
            self._seen_late = True
            return
        on_late, self._end = self._end[1], None
        on_late()
