"""A load generator in a process of its own: closed loop (so many clients) or open loop (a rate).

    python -m benchmarks.load --url http://127.0.0.1:8000 --photos FOLDER --clients 8 --seconds 10
    python -m benchmarks.load --url http://127.0.0.1:8000 --photos FOLDER --rate 50 --seconds 10

In the closed loop each client sends its next photo when the last is answered. In the open loop
photos are sent at random moments (exponential gaps), whether or not earlier ones are answered, and
latency counts from the moment a photo was due, so a server that stalls cannot hide it. Photos
(*.jpg) are posted as the multipart field `file`. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

BOUNDARY = "photo-boundary"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
# What a refused client of the closed loop waits before it tries again.
REFUSED_SECONDS = 0.2
TIMEOUT = aiohttp.ClientTimeout(total=120)


@dataclass
class Record:
    """What became of the photos."""

    seconds: list[float] = field(default_factory=list)
    """Latency of each answered photo."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Replies by HTTP status; 0: the connection failed."""

    def summary(self, elapsed: float) -> dict[str, Any]:
        """Latencies in milliseconds, throughput in photos a second."""
        quantiles = np.quantile(self.seconds, (0.5, 0.95, 0.99)) if self.seconds else [np.nan] * 3
        named = zip(("p50", "p95", "p99"), quantiles, strict=True)
        return {
            **{f"{name}_ms": round(float(value) * 1000, 2) for name, value in named},
            "photos_per_second": round(len(self.seconds) / elapsed, 2),
            "answered": len(self.seconds),
            "refused": self.statuses[429] + self.statuses[503],
            "failed": sum(n for s, n in self.statuses.items() if s not in (200, 429, 503)),
        }


def bodies(folder: Path) -> list[bytes]:
    """The photos of a folder as multipart bodies, encoded once."""
    head = (
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; "
        'name="file"; filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    tail = f"\r\n--{BOUNDARY}--\r\n"
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise SystemExit(f"{folder}: no *.jpg in it")
    return [head.encode() + path.read_bytes() + tail.encode() for path in paths]


async def _post(session: aiohttp.ClientSession, url: str, body: bytes) -> int:
    try:
        async with session.post(url, data=body, headers=HEADERS) as reply:
            await reply.read()
            return reply.status
    except (aiohttp.ClientError, TimeoutError):
        return 0


async def closed_loop(
    session: aiohttp.ClientSession, url: str, photos: list[bytes], clients: int, seconds: float
) -> Record:
    """`clients` that never pause, for so long."""
    record, following = Record(), itertools.cycle(photos)
    end = time.perf_counter() + seconds

    async def client() -> None:
        while (started := time.perf_counter()) < end:
            status = await _post(session, url, next(following))
            record.statuses[status] += 1
            if status == 200:
                record.seconds.append(time.perf_counter() - started)
            else:
                await asyncio.sleep(REFUSED_SECONDS)

    await asyncio.gather(*(client() for _ in range(clients)))
    return record


async def open_loop(
    session: aiohttp.ClientSession, url: str, photos: list[bytes], rate: float, seconds: float
) -> Record:
    """`rate` photos a second on average, however long the replies take."""
    record, following = Record(), itertools.cycle(photos)

    async def send(due: float) -> None:
        status = await _post(session, url, next(following))
        record.statuses[status] += 1
        if status == 200:
            record.seconds.append(time.perf_counter() - due)

    tasks = []
    started = time.perf_counter()
    for after in _moments(rate, seconds):
        due = started + after
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(send(due)))
    await asyncio.gather(*tasks)
    return record


def _moments(rate: float, seconds: float) -> Iterator[float]:
    """Seconds from the start; the same for every server."""
    draw, moment = random.Random(0), 0.0
    while (moment := moment + draw.expovariate(rate)) < seconds:
        yield moment


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Warm up, then load; the summary."""
    photos = bodies(options.photos)
    url = options.url + "/predict"
    # A port a connection: keep-alive, as many connections as there are clients.
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=TIMEOUT) as session:
        for body in photos[: options.warm_up]:
            await _post(session, url, body)
        started, spent = time.perf_counter(), time.process_time()
        if options.rate:
            record = await open_loop(session, url, photos, options.rate, options.seconds)
        else:
            record = await closed_loop(session, url, photos, options.clients, options.seconds)
        summary = record.summary(time.perf_counter() - started)
        asked = max(1, sum(record.statuses.values()))
        cpu_ms = 1000 * (time.process_time() - spent) / asked
        return summary | {"generator_cpu_ms_per_photo": round(cpu_ms, 3)}


def main() -> None:
    """Load one server, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--photos", type=Path, required=True, help="folder of *.jpg")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0, help="photos a second: the open loop")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--warm-up", type=int, default=4, help="photos sent before")
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
