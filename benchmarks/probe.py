"""Asks the health endpoints from a process of its own, so that a busy generator delays nothing.

    python -m benchmarks.probe URL SECONDS_BETWEEN

Runs until its standard input ends, then prints JSON: `replies`, [seconds since the start, seconds
that the reply took] each, and `failures`, what went wrong where none came or it was not 200.
"""

from __future__ import annotations

import http.client
import itertools
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

PATHS = ("/health/live", "/health/ready")
TIMEOUT_SECONDS = 120.0


@dataclass
class Health:
    """What became of every question."""

    replies: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the start, seconds taken."""
    failures: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        """How long each reply took."""
        return [took for _, took in self.replies]


@contextmanager
def health_probe(url: str, every: float) -> Iterator[Health]:
    """Ask `url` within the block, /health/live and /health/ready by turns; filled at its end."""
    command = [sys.executable, "-m", "benchmarks.probe", url, str(every)]
    health = Health()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield health
    finally:
        output, _ = process.communicate("")
    found = json.loads(output)
    health.replies += [(at, took) for at, took in found["replies"]]
    health.failures += found["failures"]


def probe(url: str, every: float) -> Health:
    """Ask until standard input ends."""
    health, began = Health(), time.perf_counter()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_SECONDS)
    for path in itertools.cycle(PATHS):
        started = time.perf_counter()
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            reply.read()
        except (OSError, http.client.HTTPException) as error:
            health.failures.append(f"{path}: {error!r}")
            connection.close()  # the next question connects anew
        else:
            took = time.perf_counter() - started
            if reply.status == http.client.OK:
                health.replies.append((round(started - began, 4), round(took, 6)))
            else:
                health.failures.append(f"{path}: status {reply.status}")
        if select.select([sys.stdin], [], [], every)[0]:
            break
    return health


if __name__ == "__main__":
    print(json.dumps(asdict(probe(sys.argv[1], float(sys.argv[2])))))
