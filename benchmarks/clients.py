"""Clients that write down what became of every request, and a watch on the server's process."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
import psutil

from benchmarks.servers import whole

JPEG = {"Content-Type": "image/jpeg"}
TIMEOUT = aiohttp.ClientTimeout(total=120)
MEBIBYTE = 1024 * 1024


@dataclass
class Ledger:
    """Every request that was sent, and its end: a status, given up by us, or lost."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    given_up: int = 0
    lost: list[str] = field(default_factory=list)
    """What went wrong where no reply came that was waited for."""
    seconds: list[float] = field(default_factory=list)
    """Time to each reply with status 200."""

    def summary(self, elapsed: float) -> dict[str, Any]:
        """Counts, and milliseconds of accepted requests."""
        return {
            "sent": self.sent,
            "answered": sum(self.statuses.values()),
            "given_up_by_client": self.given_up,
            "lost": len(self.lost),
            "lost_because": dict(Counter(self.lost)),
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            "accepted_per_second": round(self.statuses[200] / elapsed, 2),
            **milliseconds("accepted", self.seconds),
        }


def milliseconds(name: str, seconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum."""
    values = np.array(seconds or [np.nan]) * 1000
    quantiles = {
        "p50": np.quantile(values, 0.5),
        "p99": np.quantile(values, 0.99),
        "max": values.max(),
    }
    return {f"{name}_{key}_ms": round(float(value), 1) for key, value in quantiles.items()}


def open_session() -> aiohttp.ClientSession:
    """As many connections as are needed, kept open."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=TIMEOUT)


async def post(
    session: aiohttp.ClientSession, url: str, body: bytes, headers: dict[str, str], ledger: Ledger
) -> dict[str, Any] | None:
    """Send one photo and write down its end. The reply, where it was accepted."""
    ledger.sent += 1
    started = time.perf_counter()
    try:
        async with session.post(f"{url}/predict", data=body, headers=headers) as reply:
            text = await reply.read()
    except asyncio.CancelledError:
        ledger.given_up += 1
        raise
    except (aiohttp.ClientError, TimeoutError) as error:
        ledger.lost.append(type(error).__name__)
        return None
    ledger.statuses[reply.status] += 1
    if reply.status != 200:
        return None
    ledger.seconds.append(time.perf_counter() - started)
    answer: dict[str, Any] = json.loads(text)
    return answer


def moments(rate: float, seconds: float, rng: np.random.Generator) -> Iterator[float]:
    """Seconds from the start at which requests are due: random, `rate` a second on average."""
    moment = 0.0
    while (moment := moment + float(rng.exponential(1 / rate))) < seconds:
        yield moment


@dataclass(frozen=True)
class Sample:
    """The server's processes at one moment."""

    at_seconds: float
    rss_mb: float
    threads: int
    files: int
    """Open file descriptors, sockets included."""


def sample(process: psutil.Process, started: float) -> Sample:
    """What the server's processes hold now; `started` is a time.perf_counter()."""
    processes = whole(process)
    return Sample(
        round(time.perf_counter() - started, 1),
        round(sum(p.memory_info().rss for p in processes) / MEBIBYTE, 1),
        sum(p.num_threads() for p in processes),
        sum(p.num_fds() for p in processes),
    )


async def watch(process: psutil.Process, every: float, samples: list[Sample]) -> None:
    """Append a sample each `every` seconds, for ever."""
    started = time.perf_counter()
    while True:
        samples.append(sample(process, started))
        await asyncio.sleep(every)
