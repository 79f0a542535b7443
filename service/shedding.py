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
# Photos still arriving count for about so long, and for one permit in so many at most: heads alone,
# with nothing behind them, must not keep others out.
ARRIVES_SECONDS = 0.05
ARRIVING_SHARE = 8

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
        # Photos let through that have no permit yet. All of those that come together would pass for
        # the one there is room for, and the app, which costs ten times as much, refuse the others.
        self._arriving: dict[object, float] = {}  # since when, the oldest first
        self._asking = 0
        # Beside the metrics, which take as long to count one as the rest of a refusal does.
        self._uncounted = dict.fromkeys(PATHS, 0)
        self._unlogged = 0
        self._logged_at = 0.0  # by the event loop's clock

    @property
    def is_shedding(self) -> bool:
        """Whether photos are turned away now."""
        arriving = min(len(self._arriving), self._lifecycle.capacity // ARRIVING_SHARE)
        return self._lifecycle.is_full(coming=self._asking + arriving)

    def refuses(self, method: bytes, url: bytes) -> bool:
        """Whether this request is to be answered with `reply` at once; then it is counted."""
        return method == b"POST" and self.is_shedding and self.note_refusal(url.partition(b"?")[0])

    def note_refusal(self, path: bytes) -> bool:
        """Count a refusal; False where nothing is refused at this path."""
        if path not in self._uncounted:
            return False
        self._uncounted[path] += 1
        return True

    def let_through(self, method: bytes, url: bytes) -> object | None:
        """A head is let through; if it may be a photo's, what to tell `has_arrived` of."""
        if method != b"POST" or url.partition(b"?")[0] not in self._uncounted:
            return None
        photo = object()
        self._arriving[photo] = asyncio.get_running_loop().time()
        return photo

    def forget(self, photo: object) -> None:
        """It arrives no more."""
        self._arriving.pop(photo, None)

    def has_arrived(self, photo: object) -> None:
        """Its body is there, and in the loop's next turn the app asks for its permit.

        But for base64 in JSON, which is decoded before.
        """
        self.forget(photo)
        self._asking += 1
        asyncio.get_running_loop().call_soon(self._has_asked)

    def _has_asked(self) -> None:
        self._asking -= 1

    def look(self, now: float) -> None:
        """Account for what was refused since the last time; called several times a second."""
        self.pacer.look(refused=self._tell_metrics(), is_full=self._lifecycle.is_full())
        # No timer of its own for each: it would wake the event loop beside the engines.
        late = [p for p, since in self._arriving.items() if now - since >= ARRIVES_SECONDS]
        for photo in late:
            del self._arriving[photo]
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
