"""Ten times more photos than the service can read: who is answered, how fast, at what memory.

    python -m benchmarks.overload [--seconds 300] [--parts 10] [--times 10] [--shared-cores]
                                  [--output FOLDER]

First the best throughput is measured (closed loop, 32 clients), then photos (640 x 480, one face)
are sent at `--times` that rate at random moments: by the same generator, and with the health
endpoints asked twenty times a second in both. The flood comes in parts, with the best measured
again after each: a shared machine changes its pace by a fifth within a minute, so what a part
accepts is compared with the mean of the bests before and after it. `share_of_best` is the mean over
the parts, with its standard error. The generator runs on the same machine, with its last core to
itself: on cores that it shares, the more it sends the less CPU it leaves to the service, whatever
that does with it. With `--shared-cores` both use all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

from benchmarks.clients import (
    JPEG,
    Ledger,
    Sample,
    milliseconds,
    moments,
    open_session,
    post,
    watch,
)
from benchmarks.photos import usual_photos
from benchmarks.probe import Health, health_probe
from benchmarks.report import machine
from benchmarks.servers import SERVICE, RunningServer, running

PHOTOS = 8
CLIENTS = 32  # with which the most are read: where more photos wait, each costs the server less
HEALTH_EVERY, SAMPLE_EVERY = 0.05, 1.0
WARM_SECONDS = 3.0


class Traffic:
    """Photos sent to the server in several parts; what became of them, and of the server."""

    def __init__(self, server: RunningServer, photos: list[bytes]) -> None:
        self._server, self._photos = server, itertools.cycle(photos)
        self._rng = np.random.default_rng(0)
        self._ledger = Ledger()
        self._samples: list[Sample] = []
        self._health: list[Health] = []
        self._elapsed = 0.0
        self._cpu_seconds = np.zeros(3)  # as _spent gives them
        self.accepted_per_second: list[float] = []
        """Of each part."""

    async def closed_loop(self, seconds: float) -> None:
        """CLIENTS clients, each of which sends its next photo when the last is answered."""
        end = time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < end:
                await self._post(session)

        async with self._part() as session:
            await asyncio.gather(*(client() for _ in range(CLIENTS)))

    async def flood(self, rate: float, seconds: float) -> None:
        """Photos at `rate` a second on average, however long the replies take."""
        async with self._part() as session:
            started, tasks = time.perf_counter(), []
            for after in moments(rate, seconds, self._rng):
                await asyncio.sleep(max(0.0, started + after - time.perf_counter()))
                tasks.append(asyncio.create_task(self._post(session)))
            await asyncio.gather(*tasks)

    def summary(self) -> dict[str, Any]:
        """Counts, latencies, memory and CPU of all parts."""
        samples = self._samples
        failures = [failure for health in self._health for failure in health.failures]
        seconds = [took for health in self._health for took in health.seconds]
        server_cores, loop_cores, generator_cores = (self._cpu_seconds / self._elapsed).round(2)
        return {
            "sent_per_second": round(self._ledger.sent / self._elapsed, 1),
            **self._ledger.summary(self._elapsed),
            "cpu_ms_accepted": round(self.cpu_ms_accepted(), 2),
            "health_asked": len(seconds) + len(failures),
            "health_failures": failures,
            **milliseconds("health", seconds),
            "rss_mb_first": samples[0].rss_mb,
            "rss_mb_middle": samples[len(samples) // 2].rss_mb,
            "rss_mb_last": samples[-1].rss_mb,
            "rss_mb_peak": round(self._server.peak_mb(), 1),
            "server_cores": float(server_cores),
            "event_loop_cores": float(loop_cores),
            "generator_cores": float(generator_cores),
        }

    def cpu_ms_accepted(self) -> float:
        """All CPU time of the server for each photo that it accepted."""
        return 1000 * float(self._cpu_seconds[0]) / max(1, self._accepted)

    @property
    def _accepted(self) -> int:
        return self._ledger.statuses[HTTPStatus.OK]

    async def _post(self, session: aiohttp.ClientSession) -> None:
        await post(session, self._server.url, next(self._photos), JPEG, self._ledger)

    @asynccontextmanager
    async def _part(self) -> AsyncIterator[aiohttp.ClientSession]:
        """What is sent within the block is watched, and counts up to its last reply."""
        accepted = self._accepted
        watcher = asyncio.create_task(watch(self._server.process, SAMPLE_EVERY, self._samples))
        gc.collect()
        gc.freeze()  # the generator's own collections would be taken for the service's delays
        with health_probe(self._server.url, HEALTH_EVERY) as health:
            async with open_session() as session:
                started, spent = time.perf_counter(), self._spent()
                yield session
                elapsed = time.perf_counter() - started
                self._cpu_seconds += self._spent() - spent
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        self._health.append(health)
        self._elapsed += elapsed
        self.accepted_per_second.append((self._accepted - accepted) / elapsed)

    def _spent(self) -> NDArray[np.float64]:
        """CPU seconds so far of the server, of its event loop, and of this generator."""
        server = self._server
        return np.array([server.cpu_seconds(), _event_loop_seconds(server), time.process_time()])


def _event_loop_seconds(server: RunningServer) -> float:
    """CPU time of the thread that takes and refuses requests, the process's first."""
    threads = server.process.threads()
    return sum(t.user_time + t.system_time for t in threads if t.id == server.process.pid)


@contextmanager
def kept_to(cores: set[int]) -> Iterator[None]:
    """Keep this thread, and processes started by it, to these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Best throughput and parts of the flood by turns."""
    cores = sorted(os.sched_getaffinity(0))
    own = len(cores) > 1 and not options.shared_cores
    serving, sending = (set(cores[:-1]), set(cores[-1:])) if own else (set(cores), set(cores))
    photos = usual_photos("640x480", 1, PHOTOS)
    with ExitStack() as stack:
        with kept_to(serving):
            server = stack.enter_context(running(SERVICE, []))
        stack.enter_context(kept_to(sending))
        best, flood = Traffic(server, photos), Traffic(server, photos)
        asyncio.run(Traffic(server, photos).closed_loop(WARM_SECONDS))
        asyncio.run(best.closed_loop(options.best_seconds))
        rate = options.times * best.accepted_per_second[0]
        for _ in range(options.parts):
            asyncio.run(flood.flood(rate, options.seconds / options.parts))
            asyncio.run(best.closed_loop(options.best_seconds))
        found = flood.summary()
    bests, accepted = np.array(best.accepted_per_second), np.array(flood.accepted_per_second)
    shares = accepted / ((bests[:-1] + bests[1:]) / 2)
    error = round(float(shares.std(ddof=1) / len(shares) ** 0.5), 3) if len(shares) > 1 else None
    return {
        "service_cores": len(serving),
        "shared_with_generator": not own,
        "best_per_second": bests.round(1).tolist(),
        "accepted_per_second_by_part": accepted.round(1).tolist(),
        "share_of_best": round(float(shares.mean()), 3),
        "share_standard_error": error,
        # The generator takes CPU too; what an accepted photo costs shows what the refusals take.
        "cpu_ms_best": round(best.cpu_ms_accepted(), 2),
        **found,
    }


def main() -> None:
    """Measure; print and keep JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="of the flood, all parts")
    parser.add_argument("--parts", type=int, default=10, help="of the flood")
    parser.add_argument("--best-seconds", type=float, default=10, help="of each closed loop")
    parser.add_argument("--times", type=float, default=10, help="of the first best throughput")
    parser.add_argument("--shared-cores", action="store_true", help="none for the generator alone")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    found = measure(options)
    given = {"seconds": options.seconds, "parts": options.parts, "times": options.times}
    found = {"machine": machine(), **given, **found}
    text = json.dumps(found, indent=1)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "overload.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
