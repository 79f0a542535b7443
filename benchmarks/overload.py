"""Ten times more photos than the service can read: who is answered, how fast, at what memory.

    python -m benchmarks.overload [--seconds 300] [--parts 10] [--times 10] [--shared-cores]
                                  [--output FOLDER]

First the best throughput is measured (closed loop, 32 clients), then photos (640 x 480, one face)
are sent at `--times` that rate at random moments, while the health endpoints are asked twenty times
a second. The flood comes in parts, with the best measured again after each: a shared machine
changes its pace by a fifth within a minute, so what a part accepts is compared with the mean of the
bests before and after it. `share_of_best` is the mean over the parts, with its standard error. The
generator runs on the same machine, with its last core to itself: on cores that it shares, the more
it sends the less CPU it leaves to the service, whatever that does with it. With `--shared-cores`
both use all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

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


class Flood:
    """Photos at `rate` a second, however long the replies take, and what becomes of them."""

    def __init__(self, server: RunningServer, photos: list[bytes], rate: float) -> None:
        self._server, self._photos, self._rate = server, photos, rate
        self._rng = np.random.default_rng(0)
        self._ledger = Ledger()
        self._samples: list[Sample] = []
        self._health: list[Health] = []
        self._offering = self._elapsed = 0.0
        self._cpu_seconds = np.zeros(3)  # as _spent gives them

    async def part(self, seconds: float) -> float:
        """Send for so long, and wait for the last reply. How many a second were accepted."""
        accepted = self._ledger.statuses[HTTPStatus.OK]
        watcher = asyncio.create_task(watch(self._server.process, SAMPLE_EVERY, self._samples))
        gc.collect()
        gc.freeze()  # the generator's own collections would be taken for the service's delays
        started, spent = time.perf_counter(), self._spent()
        with health_probe(self._server.url, HEALTH_EVERY) as health:
            async with open_session() as session:
                tasks = []
                for number, after in enumerate(moments(self._rate, seconds, self._rng)):
                    await asyncio.sleep(max(0.0, started + after - time.perf_counter()))
                    photo = self._photos[number % len(self._photos)]
                    sending = post(session, self._server.url, photo, JPEG, self._ledger)
                    tasks.append(asyncio.create_task(sending))
                self._offering += time.perf_counter() - started
                await asyncio.gather(*tasks)
        elapsed = time.perf_counter() - started
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        self._health.append(health)
        self._elapsed += elapsed
        self._cpu_seconds += self._spent() - spent
        return (self._ledger.statuses[HTTPStatus.OK] - accepted) / elapsed

    def summary(self) -> dict[str, Any]:
        """Counts, latencies, memory and CPU of all parts."""
        samples = self._samples
        failures = [failure for health in self._health for failure in health.failures]
        seconds = [took for health in self._health for took in health.seconds]
        server_cores, loop_cores, generator_cores = (self._cpu_seconds / self._elapsed).round(2)
        return {
            "offered_per_second": round(self._ledger.sent / self._offering, 1),
            **self._ledger.summary(self._elapsed),
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


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Best throughput and parts of the flood by turns."""
    cores = sorted(os.sched_getaffinity(0))
    own = len(cores) > 1 and not options.shared_cores
    serving, sending = (set(cores[:-1]), set(cores[-1:])) if own else (set(cores), set(cores))
    photos = usual_photos("640x480", 1, PHOTOS)
    for index, photo in enumerate(photos):
        (folder / f"{index}.jpg").write_bytes(photo)
    with ExitStack() as stack:
        with kept_to(serving):
            server = stack.enter_context(running(SERVICE, []))
        stack.enter_context(kept_to(sending))
        closed = ("--clients", CLIENTS, "--seconds", options.best_seconds)
        runs = [server.load(folder, *closed)]
        flood = Flood(server, photos, options.times * runs[0].load["photos_per_second"])
        accepted = []
        for _ in range(options.parts):
            accepted.append(asyncio.run(flood.part(options.seconds / options.parts)))
            runs.append(server.load(folder, *closed))
        found = flood.summary()
    bests = np.array([run.load["photos_per_second"] for run in runs])
    shares = np.array(accepted) / ((bests[:-1] + bests[1:]) / 2)
    error = round(float(shares.std(ddof=1) / len(shares) ** 0.5), 3) if len(shares) > 1 else None
    # The generator takes CPU too; what an accepted photo costs shows what the refusals take.
    spent = 1000 * found["server_cores"] / found["accepted_per_second"]
    return {
        "service_cores": len(serving),
        "shared_with_generator": not own,
        "best_per_second": bests.round(1).tolist(),
        "accepted_per_second_by_part": np.round(accepted, 1).tolist(),
        "share_of_best": round(float(shares.mean()), 3),
        "share_standard_error": error,
        "cpu_ms_best": round(float(np.mean([run.cpu_ms_per_photo for run in runs])), 2),
        "cpu_ms_accepted": round(spent, 2),
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
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    given = {"seconds": options.seconds, "parts": options.parts, "times": options.times}
    found = {"machine": machine(), **given, **found}
    text = json.dumps(found, indent=1)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "overload.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
