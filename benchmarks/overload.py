"""Ten times more photos than the service can read: who is answered, how fast, at what memory.

    python -m benchmarks.overload [--seconds 300] [--times 10] [--shared-cores] [--output FOLDER]

First the best throughput is measured (closed loop, 8 clients), then photos (640 x 480, one face)
are sent at `--times` that rate at random moments, while the health endpoints are asked ten times a
second, then the best once more. What is accepted is compared with the mean of both bests, since a
shared machine changes its pace. The generator runs on the same machine, with its last core to
itself: on cores that it shares, the more it sends the less CPU it leaves to the service, whatever
that does with it. With `--shared-cores` both use all of them.
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
from pathlib import Path
from typing import Any

import numpy as np

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
from benchmarks.probe import health_probe
from benchmarks.report import machine
from benchmarks.servers import SERVICE, RunningServer, running

PHOTOS, CLIENTS = 8, 8
HEALTH_EVERY, SAMPLE_EVERY = 0.05, 1.0
SLOWEST = 5


async def flood(
    server: RunningServer, photos: list[bytes], rate: float, seconds: float
) -> dict[str, Any]:
    """Send photos at `rate` a second, however long the replies take."""
    ledger, samples = Ledger(), list[Sample]()
    watcher = asyncio.create_task(watch(server.process, SAMPLE_EVERY, samples))
    gc.collect()
    gc.freeze()  # the generator's own collections would be taken for the service's delays
    started, cpu = time.perf_counter(), time.process_time()
    server_cpu, loop_cpu = server.cpu_seconds(), _event_loop_seconds(server)
    with health_probe(server.url, HEALTH_EVERY) as health:
        async with open_session() as session:
            tasks = []
            for number, after in enumerate(moments(rate, seconds, np.random.default_rng(0))):
                await asyncio.sleep(max(0.0, started + after - time.perf_counter()))
                photo = photos[number % len(photos)]
                tasks.append(asyncio.create_task(post(session, server.url, photo, JPEG, ledger)))
            offered = time.perf_counter() - started
            await asyncio.gather(*tasks)
    elapsed = time.perf_counter() - started
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    return {
        "offered_per_second": round(ledger.sent / offered, 1),
        **ledger.summary(elapsed),
        "health_asked": len(health.replies) + len(health.failures),
        "health_failures": health.failures,
        **milliseconds("health", health.seconds),
        "health_slowest": sorted(health.replies, key=lambda reply: -reply[1])[:SLOWEST],
        "rss_mb_first": samples[0].rss_mb,
        "rss_mb_middle": samples[len(samples) // 2].rss_mb,
        "rss_mb_last": samples[-1].rss_mb,
        "rss_mb_peak": round(server.peak_mb(), 1),
        "server_cores": round((server.cpu_seconds() - server_cpu) / elapsed, 2),
        "event_loop_cores": round((_event_loop_seconds(server) - loop_cpu) / elapsed, 2),
        "generator_cores": round((time.process_time() - cpu) / elapsed, 2),
    }


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
    """Best throughput, the flood, best throughput again."""
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
        before = server.load(folder, *closed)
        rate = options.times * before.load["photos_per_second"]
        found = asyncio.run(flood(server, photos, rate, options.seconds))
        after = server.load(folder, *closed)
    bests = [run.load["photos_per_second"] for run in (before, after)]
    best = sum(bests) / 2
    # The generator takes CPU too; what an accepted photo costs shows what the refusals take.
    spent = 1000 * found["server_cores"] / found["accepted_per_second"]
    return {
        "service_cores": len(serving),
        "shared_with_generator": not own,
        "best_per_second_before_and_after": bests,
        "best_per_second": round(best, 2),
        "share_of_best": round(found["accepted_per_second"] / best, 3),
        "cpu_ms_best": round((before.cpu_ms_per_photo + after.cpu_ms_per_photo) / 2, 2),
        "cpu_ms_accepted": round(spent, 2),
        **found,
    }


def main() -> None:
    """Measure; print and keep JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="of the flood")
    parser.add_argument("--best-seconds", type=float, default=20, help="of each closed loop")
    parser.add_argument("--times", type=float, default=10, help="of the first best throughput")
    parser.add_argument("--shared-cores", action="store_true", help="none for the generator alone")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    found = {"machine": machine(), "seconds": options.seconds, "times": options.times, **found}
    text = json.dumps(found, indent=1)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "overload.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
