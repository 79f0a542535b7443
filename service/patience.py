"""How long a connection waits for its client, and what happens then."""

from __future__ import annotations

from collections.abc import Callable


class Patience:
    """One wait at a time. All moments are those of the event loop's clock, in seconds."""

    def __init__(self) -> None:
        self.since: float | None = None
        """When the wait began; None while the client waits for us."""
        self._deadline: float | None = None
        self._seen_late = False
        self._on_late: Callable[[], None] | None = None

    def wait(self, now: float, seconds: float, on_late: Callable[[], None]) -> None:
        """Wait from `now` on for so long, then call `on_late`; in place of any wait before."""
        self.since = now
        self._deadline = now + seconds
        self._seen_late = False
        self._on_late = on_late

    def wait_without_end(self, now: float) -> None:
        """Wait from `now` on, while somebody else minds how long."""
        self.since, self._deadline = now, None

    def stop(self) -> None:
        """What was waited for is there, or will never be."""
        self.since, self._deadline = None, None

    def check(self, now: float) -> None:
        """Call what is to happen where the wait is over; called several times a second."""
        if self._deadline is None or now < self._deadline:
            return
        # Where the whole process stood still, what the client sent in time is read only now, after
        # this check: the next one ends what is still late.
        if not self._seen_late:
            self._seen_late = True
            return
        self._deadline = None
        if self._on_late is not None:
            self._on_late()
