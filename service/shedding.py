"""Turning photos away cheaply: under overload most requests are refusals, and all must be quick."""

from __future__ import annotations

import asyncio
import logging

from service.errors import OverloadedError
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.pacing import Pacer
from service.prepared import PreparedReply

PATHS = (b"/predict", b"/predict/batch")
# Refusals are logged together, not one by one: that would cost more than refusing does.
LOG_EVERY_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Shedder:
    """Says 429 to a request's head, before the app hears of it, at a fraction of its cost.

    What is not refused here is checked again by the routes, which know more.
    """

    def __init__(self, *, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self.pacer = Pacer()
        error = OverloadedError("As many images are in flight as the service takes.")
        self.reply = PreparedReply(error)
        self._lifecycle = lifecycle
        self._problems = metrics.problems.labels(error.slug)
        self._requests = {
            path: metrics.requests.labels("POST", path.decode(), str(error.status))
            for path in PATHS
        }
        self._coming = 0
        # Beside the metrics, which take as long to count one as the rest of a refusal does.
        self._uncounted = dict.fromkeys(PATHS, 0)
        self._unlogged = 0
        self._logged_at = 0.0  # by the event loop's clock

    @property
    def is_shedding(self) -> bool:
        """Whether photos are turned away now."""
        return self._lifecycle.is_full(coming=self._coming)

    def refuses(self, method: bytes, url: bytes) -> bool:
        """Whether this request is to be answered with `reply` at once; then it is counted."""
        return method == b"POST" and self.is_shedding and self.counts(url.partition(b"?")[0])

    def counts(self, path: bytes) -> bool:
        """Count a refusal; False where nothing is refused at this path."""
        if path not in self._uncounted:
            return False
        self._uncounted[path] += 1
        return True

    def let_through(self, path: bytes, loop: asyncio.AbstractEventLoop) -> None:
        """A request is there as a whole, and the app is about to hear of it.

        It has its permit by the end of the loop's next turn. Of many that come in one turn all
        would pass for the one for which there is room, and the app would refuse the others.
        """
        if path in self._uncounted:
            self._coming += 1
            loop.call_soon(self._has_come)

    def _has_come(self) -> None:
        self._coming -= 1

    def look(self, now: float) -> None:
        """Account for what was refused since the last time; called several times a second."""
        self.pacer.look(refused=self._tell_metrics())
        if now - self._logged_at >= LOG_EVERY_SECONDS:
            self._logged_at = now
            self._log()

    def end(self) -> None:
        """Account for the rest."""
        self._tell_metrics()
        self._log()

    def _tell_metrics(self) -> int:
        refused = sum(self._uncounted.values())
        if refused:
            for path, count in self._uncounted.items():
                self._requests[path].inc(count)
            self._problems.inc(refused)
            self._unlogged += refused
            self._uncounted = dict.fromkeys(PATHS, 0)
        return refused

    def _log(self) -> None:
        if self._unlogged:
            logger.warning("photos turned away", extra={"count": self._unlogged})
            self._unlogged = 0
