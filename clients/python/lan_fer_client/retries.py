"""When to send a request again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

# Full for now, a proxy without a server behind it, starting or stopping.
RETRIED_STATUSES = frozenset({429, 502, 503})
# A reply that does not come in time is not among them: it would not come sooner a second time.
RETRIED_FAILURES = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadError,
    httpx.WriteError,
    httpx.CloseError,
    httpx.RemoteProtocolError,
)

Outcome = httpx.Response | httpx.RequestError
"""Of one attempt."""


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often, and how patiently; waits in seconds."""

    attempts: int = 5
    """In all; 1 never sends again."""
    first_wait: float = 0.25
    """Doubles with each attempt, where the reply does not say how long; up to half of a wait is
    left to chance, so that clients refused together do not come back together.
    """
    longest_wait: float = 30.0
    """No single wait is longer; a reply that asks for a longer one is given to the caller."""

    def wait_after(self, attempt: int, outcome: Outcome) -> float | None:
        """Seconds to wait after the given attempt (from 1); None where it was the last."""
        if attempt >= self.attempts:
            return None
        if isinstance(outcome, httpx.Response):
            if outcome.status_code not in RETRIED_STATUSES:
                return None
            asked = retry_after(outcome)
            if asked is not None:
                return asked if asked <= self.longest_wait else None
        elif not isinstance(outcome, RETRIED_FAILURES):
            return None
        wait = min(self.longest_wait, self.first_wait * 2.0 ** (attempt - 1))
        return wait * random.uniform(0.5, 1.0)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds in the header Retry-After, a number or a date; None where it is absent or neither."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):  # no date; one that no calendar has
        return None
