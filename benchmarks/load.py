"""A load generator in a process of its own: closed loop (so many clients) or open loop (a rate).

    python -m benchmarks.load --url http://127.0.0.1:8000 --photos FOLDER --clients 8 --seconds 10
    python -m benchmarks.load --url http://127.0.0.1:8000 --photos FOLDER --rate 50 --seconds 10

In the closed loop each client sends its next photo when the last is answered. In the open loop
photos are sent at random moments (exponential gaps), whether or not earlier ones are answered, and
latency counts from the moment a photo was due, so a server that stalls cannot hide it. Photos
(*.jpg) are posted as the multipart field `file`. Prints JSON.

The generator runs beside the server, on the same cores, so it is lean: requests are made once, and
of a reply only the status is kept. What it takes for a photo is printed, too.
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
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import numpy as np
import uvloop

BOUNDARY = "photo-boundary"
# What a refused client of the closed loop waits before it tries again.
REFUSED_SECONDS = 0.2
TIMEOUT_SECONDS = 120.0
FAILED = 0


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


def requests(folder: Path, host: str) -> list[bytes]:
    """The photos of a folder as whole HTTP requests, encoded once."""
    part = (
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; "
        'name="file"; filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    tail = f"\r\n--{BOUNDARY}--\r\n"
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise SystemExit(f"{folder}: no *.jpg in it")
    bodies = [part.encode() + path.read_bytes() + tail.encode() for path in paths]
    head = (
        f"POST /predict HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: "
    )
    return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]


class _Connection(asyncio.Protocol):
    """One connection, kept open, with at most one request."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._status: asyncio.Future[int] | None = None
        self._transport: asyncio.Transport

    async def post(self, request: bytes) -> int:
        """The status of its reply; FAILED where there is none."""
        if not self.is_open:
            return FAILED
        self._status = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await self._status
        except TimeoutError:
            self._transport.abort()
            return FAILED

    @property
    def is_open(self) -> bool:
        """Whether it takes a request."""
        return not self._transport.is_closing()

    def close(self) -> None:
        """End it."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_message_complete(self) -> None:
        """A reply is there as a whole."""
        status = self._parser.get_status_code()
        if status < 200:  # more follows
            return
        if not self._parser.should_keep_alive():
            self.close()
        self._end(status)

    def connection_lost(self, _: Exception | None) -> None:
        """See asyncio.BaseProtocol."""
        self._end(FAILED)

    def _end(self, status: int) -> None:
        if self._status is not None and not self._status.done():
            self._status.set_result(status)


class Server:
    """The server under load, and the connections to it."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[_Connection] = []

    async def post(self, request: bytes) -> int:
        """Send a request, on a connection that is free or a new one. See _Connection.post."""
        connection = self._idle.pop() if self._idle else None
        if connection is None or not connection.is_open:
            try:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(_Connection, self._host, self._port)
            except OSError:
                return FAILED
        status = await connection.post(request)
        self._idle.append(connection)
        return status

    def close(self) -> None:
        """End all connections."""
        for connection in self._idle:
            connection.close()


async def closed_loop(
    server: Server,
    photos: list[bytes],
    clients: int,
    seconds: float,
    refused_seconds: float = REFUSED_SECONDS,
) -> Record:
    """`clients` for so long; they pause only where they are refused."""
    record, following = Record(), itertools.cycle(photos)
    end = time.perf_counter() + seconds

    async def client() -> None:
        while (started := time.perf_counter()) < end:
            status = await server.post(next(following))
            record.statuses[status] += 1
            if status == 200:
                record.seconds.append(time.perf_counter() - started)
            else:
                await asyncio.sleep(refused_seconds)

    await asyncio.gather(*(client() for _ in range(clients)))
    return record


async def open_loop(server: Server, photos: list[bytes], rate: float, seconds: float) -> Record:
    """`rate` photos a second on average, however long the replies take."""
    record, following = Record(), itertools.cycle(photos)

    async def send(due: float) -> None:
        status = await server.post(next(following))
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
    address = urlsplit(options.url)
    if address.scheme != "http" or address.path not in ("", "/"):
        raise SystemExit(f"{options.url}: http://host:port is wanted")
    server = Server(address.hostname or "", address.port or 80)
    photos = requests(options.photos, address.netloc)
    for photo in photos[: options.warm_up]:
        await server.post(photo)
    started, spent = time.perf_counter(), time.process_time()
    if options.rate:
        record = await open_loop(server, photos, options.rate, options.seconds)
    else:
        clients, pause = options.clients, options.refused_seconds
        record = await closed_loop(server, photos, clients, options.seconds, pause)
    server.close()
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
    parser.add_argument(
        "--refused-seconds",
        type=float,
        default=REFUSED_SECONDS,
        help="what a refused client of the closed loop waits; 0: it comes back at once",
    )
    parser.add_argument("--warm-up", type=int, default=4, help="photos sent before")
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
