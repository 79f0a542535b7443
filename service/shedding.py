"""Turning photos away cheaply: under overload most requests are refusals, and all must be quick."""

from __future__ import annotations

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
        self._lifecycle = lifecycle
        error = OverloadedError("As many images are in flight as the service takes.")
        self._reply = PreparedReply(error)
        self._problems = metrics.problems.labels(error.slug)
        self._requests = {
            path: metrics.requests.labels("POST", path.decode(), str(error.status))
            for path in PATHS
        }
        self._unlogged = 0
        self._logged_at = -LOG_EVERY_SECONDS

    @property
    def is_shedding(self) -> bool:
        """Whether photos are turned away now."""
        return self._lifecycle.is_full

    def refusal(self, method: bytes, url: bytes) -> PreparedReply | None:
        """What to answer this request with at once, and it is counted; None: go on."""
        if method != b"POST" or not self._lifecycle.is_full:
            return None
        requests = self._requests.get(url.partition(b"?")[0])
        if requests is None:
            return None
        requests.inc()
        self._problems.inc()
        self._unlogged += 1
        return self._reply

    def log_refusals(self, now: float | None = None) -> None:
        """Log those not logged yet, at most once in LOG_EVERY_SECONDS; without `now`, at once."""
        if not self._unlogged or (now is not None and now - self._logged_at < LOG_EVERY_SECONDS):
            return
        logger.warning("photos turned away", extra={"count": self._unlogged})
        self._unlogged, self._logged_at = 0, now or self._logged_at
