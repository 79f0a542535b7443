"""Turning photos away cheaply: under overload most requests are refusals, and all must be quick."""

from __future__ import annotations

import logging

from service.errors import OverloadedError
from service.lifecycle import Lifecycle
from service.metrics import Metrics

PATHS = {b"/predict": "/predict", b"/predict/batch": "/predict/batch"}
# Refusals are logged together, not one by one: that would cost more than refusing does.
LOG_EVERY_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Shedder:
    """Says 429 to a request's head, before the app hears of it, at a fraction of its cost.

    What is not refused here is checked again by the routes, which know more.
    """

    def __init__(self, *, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._error = OverloadedError("As many images are in flight as the service takes.")
        self._unlogged = 0
        self._logged_at = -LOG_EVERY_SECONDS

    def refusal(self, method: bytes, url: bytes) -> OverloadedError | None:
        """The problem to answer this request with at once, and it is counted; None: go on."""
        if method != b"POST" or not self._lifecycle.is_full:
            return None
        path = PATHS.get(url.partition(b"?")[0])
        if path is None:
            return None
        self._metrics.requests.labels("POST", path, str(self._error.status)).inc()
        self._metrics.problems.labels(self._error.slug).inc()
        self._unlogged += 1
        return self._error

    def log_refusals(self, now: float | None = None) -> None:
        """Log those not logged yet, at most once in LOG_EVERY_SECONDS; without `now`, at once."""
        if not self._unlogged or (now is not None and now - self._logged_at < LOG_EVERY_SECONDS):
            return
        logger.warning("photos turned away", extra={"count": self._unlogged})
        self._unlogged, self._logged_at = 0, now or self._logged_at
