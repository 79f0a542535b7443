"""Asks the health endpoints from a process of its own, so that a busy generator delays nothing.

    python -m benchmarks.probe URL SECONDS_BETWEEN

Runs until its standard input ends, then prints a JSON list of [seconds since the start, seconds
that the reply took].
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
from urllib.parse import urlsplit

PATHS = ("/health/live", "/health/ready")
TIMEOUT_SECONDS = 120.0
Reply = tuple[float, float]


@contextmanager
def health_probe(url: str, every: float) -> Iterator[list[Reply]]:
    """Ask `url` within the block, /health/live and /health/ready by turns.

    Once the block has ended, the list holds (seconds since the start, seconds taken) of each
    reply. Raises RuntimeError where an endpoint did not answer with 200.
    """
    command = [sys.executable, "-m", "benchmarks.probe", url, str(every)]
    replies: list[Reply] = []
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield replies
    finally:
        output, _ = process.communicate("")
    if process.returncode:
        raise RuntimeError(f"{url}: a health endpoint did not answer; see above")
    replies += [(at, took) for at, took in json.loads(output)]


def probe(url: str, every: float) -> list[Reply]:
    """Ask until standard input ends. Raises OSError, or ValueError for another status than 200."""
    replies: list[Reply] = []
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_SECONDS)
    began = time.perf_counter()
    for path in itertools.cycle(PATHS):
        started = time.perf_counter()
        connection.request("GET", path)
        reply = connection.getresponse()
        reply.read()
        if reply.status != http.client.OK:
            raise ValueError(f"{path} answered {reply.status}")
        replies.append((round(started - began, 4), round(time.perf_counter() - started, 6)))
        if select.select([sys.stdin], [], [], every)[0]:
            break
    return replies


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], float(sys.argv[2]))))
