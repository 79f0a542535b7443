"""Whether the service takes work: the phase it is in, and how many images are in flight.

Used from the event loop alone, so nothing here needs a lock.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from service.errors import OverloadedError, UnavailableError
from service.metrics import Metrics

STARTING_RETRY_SECONDS = 2
DRAINING_RETRY_SECONDS = 5
TROUBLE_RETRY_SECONDS = 10

logger = logging.getLogger(__name__)


class Phase(Enum):
    """Phases follow each other in this order; the value tells a client which one it is."""

    STARTING = "The service is starting: its networks are being warmed up."
    READY = "The service is ready."
    DRAINING = "The service is shutting down and takes no new images."


class Lifecycle:
    """The phase, and one permit for each image in flight."""

    def __init__(self, *, max_in_flight_images: int, metrics: Metrics) -> None:
        self._phase = Phase.STARTING
        self.capacity = max_in_flight_images
        self._in_flight = 0
        self._trouble: str | None = None
        # Read when asked for: drain() runs in a signal handler, where taking a lock could hang.
        metrics.ready.set_function(lambda: self._phase is Phase.READY and self._trouble is None)
        metrics.images_in_flight.set_function(lambda: self._in_flight)
        metrics.images_in_flight_limit.set(max_in_flight_images)

    @property
    def in_flight(self) -> int:
        """Images accepted and not yet answered."""
        return self._in_flight

    def is_full(self, *, coming: int = 0) -> bool:
        """Whether it would take photos, but has no permit left once `coming` have theirs.

        Those count only where half of the permits are taken: they may yet turn out to want none,
        and an idle service refuses nobody.
        """
        taken = self._in_flight
        if 2 * taken >= self.capacity:
            taken += coming
        return taken >= self.capacity and self._phase is Phase.READY and self._trouble is None

    @property
    def is_draining(self) -> bool:
        """Whether the service has been told to stop."""
        return self._phase is Phase.DRAINING

    def become_ready(self) -> None:
        """Everything is warm. Does nothing once draining: a stop during the start wins."""
        if self._phase is Phase.STARTING:
            self._phase = Phase.READY

    def drain(self) -> None:
        """Take no more images; those in flight go on."""
        self._phase = Phase.DRAINING

    def note_trouble(self, trouble: str | None) -> None:
        """What keeps the service from its work now, None where nothing does: not ready till then.

        A clause such as "the stage 'detector' hangs"; the log and clients read it.
        """
        if trouble is not None and self._trouble is None:
            logger.critical("not ready: %s", trouble)
        elif trouble is None and self._trouble is not None:
            logger.warning("ready again; it was not: %s", self._trouble)
        self._trouble = trouble

    def require_ready(self) -> None:
        """Raises UnavailableError in every phase but READY, and in trouble."""
        if self._phase is Phase.STARTING:
            raise UnavailableError(self._phase.value, retry_after_seconds=STARTING_RETRY_SECONDS)
        if self._phase is Phase.DRAINING:
            raise UnavailableError(self._phase.value, retry_after_seconds=DRAINING_RETRY_SECONDS)
        if self._trouble is not None:
            raise UnavailableError(
                f"The service does not go on: {self._trouble}.",
                retry_after_seconds=TROUBLE_RETRY_SECONDS,
            )

    def require_room(self) -> None:
        """For a request's head: no need to read a body that would be refused.

        Raises UnavailableError where the service is not ready, OverloadedError where no permit is
        left: refusing at once is kinder than a queue in which every request times out.
        """
        self.require_ready()
        if self._in_flight >= self.capacity:
            raise OverloadedError(
                f"{self.capacity} images are in flight, as many as the service takes."
            )

    @contextmanager
    def admit_image(self) -> Iterator[None]:
        """Hold a permit for one image whose body is there, until it is answered.

        Not before: whoever sends a body slowly would hold it. Raises as `require_room`.
        """
        self.require_room()
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
