"""The service under steady load: does anything grow, and do answers stay the same? `make soak`.

    python -m benchmarks.soak [--minutes 30] [--share 0.8 | --rate 5] [--output benchmarks/results]

Sends good, bad and abandoned requests at `--share` of the throughput that a short closed loop
finds, or at `--rate` requests a second. Each answer is held against the one that its photo got
alone, before and after. Keeps soak.json and soak.png: resident memory, threads, file descriptors
and the time a health endpoint takes, which is the lag of the event loop as a client sees it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import matplotlib.pyplot as plt
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
from benchmarks.probe import Health, health_probe
from benchmarks.report import machine
from benchmarks.servers import SERVICE, RunningServer, running

# Photos of each size and number of faces, sent alike often.
PHOTOS = (("640x480", 1, 6), ("1080p", 5, 1), ("12MP", 1, 1))
CLIENTS, BEST_SECONDS = 8, 20
HEALTH_EVERY, SAMPLE_EVERY = 0.25, 1.0
GOOD, BAD, ABANDONED = 0.8, 0.12, 0.08
# An abandoned request is dropped at a random moment of its first half second.
PATIENCE_SECONDS = 0.5
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@dataclass
class Run:
    """What one soak has seen."""

    ledger: Ledger = field(default_factory=Ledger)
    health: Health = field(default_factory=Health)
    samples: list[Sample] = field(default_factory=list)
    difference: float = 0.0
    """Largest difference of a probability from the photo's answer when it was alone."""
    box_difference: float = 0.0
    """The same of a box's edge, pixels."""
    other_faces: int = 0
    """Answers with another number of faces."""


def bad_requests(photo: bytes) -> list[tuple[bytes, dict[str, str]]]:
    """Bodies that are refused, with their headers."""
    return [
        (b"", JPEG),
        (b"no image at all", JPEG),
        (photo[: len(photo) // 2], JPEG),
        (photo, {"Content-Type": "text/plain"}),
        (b'{"image": "%%%"}', {"Content-Type": "application/json"}),
        (b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx', FORM),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + b"\0\1\0\0" * 2 + b"\x08\2\0\0\0", JPEG),
    ]


def compare(run: Run, alone: dict[str, Any], answer: dict[str, Any]) -> None:
    """Hold an answer against its photo's answer alone."""
    if len(alone["faces"]) != len(answer["faces"]):
        run.other_faces += 1
        return
    for expected, face in zip(alone["faces"], answer["faces"], strict=True):
        before, now = (f["expression"]["probabilities"] for f in (expected, face))
        run.difference = max(run.difference, *(abs(before[k] - now[k]) for k in before))
        edges = (abs(expected["box"][k] - face["box"][k]) for k in face["box"])
        run.box_difference = max(run.box_difference, *edges)


async def send(
    session: aiohttp.ClientSession,
    url: str,
    photo: bytes,
    alone: dict[str, Any],
    run: Run,
    rng: np.random.Generator,
) -> None:
    """One request: good, bad or abandoned."""
    kind = rng.random()
    if kind < GOOD:
        if answer := await post(session, url, photo, JPEG, run.ledger):
            compare(run, alone, answer)
    elif kind < GOOD + BAD:
        choices = bad_requests(photo)
        body, headers = choices[int(rng.integers(len(choices)))]
        await post(session, url, body, headers, run.ledger)
    else:
        work = asyncio.create_task(post(session, url, photo, JPEG, run.ledger))
        await asyncio.wait({work}, timeout=float(rng.uniform(0, PATIENCE_SECONDS)))
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def soak(server: RunningServer, photos: list[bytes], rate: float, seconds: float) -> Run:
    """Send for so long; answers alone are compared at the end too."""
    run, rng = Run(), np.random.default_rng(0)
    async with open_session() as session:
        alone = [await _alone(session, server.url, photo) for photo in photos]
        watcher = asyncio.create_task(watch(server.process, SAMPLE_EVERY, run.samples))
        tasks, started = set[asyncio.Task[None]](), time.perf_counter()
        with health_probe(server.url, HEALTH_EVERY) as run.health:
            for number, after in enumerate(moments(rate, seconds, rng)):
                await asyncio.sleep(max(0.0, started + after - time.perf_counter()))
                which = number % len(photos)
                request = send(session, server.url, photos[which], alone[which], run, rng)
                task = asyncio.create_task(request)
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)
        for photo, before in zip(photos, alone, strict=True):
            compare(run, before, await _alone(session, server.url, photo))
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    return run


async def _alone(session: aiohttp.ClientSession, url: str, photo: bytes) -> dict[str, Any]:
    answer = await post(session, url, photo, JPEG, Ledger())
    if answer is None:
        raise SystemExit("a photo is refused though the service is idle")
    return answer


def summary(run: Run, seconds: float) -> dict[str, Any]:
    """Counts, figures at a quarter of the time and at the end, differences."""
    quarter, last = run.samples[len(run.samples) // 4], run.samples[-1]
    return {
        **run.ledger.summary(seconds),
        "health_failures": run.health.failures,
        **milliseconds("health", run.health.seconds),
        "after_a_quarter": asdict(quarter),
        "at_the_end": asdict(last),
        "rss_mb_peak": max(sample.rss_mb for sample in run.samples),
        "probability_difference": run.difference,
        "box_difference_pixels": run.box_difference,
        "other_number_of_faces": run.other_faces,
    }


def picture(samples: Sequence[Sample], health: Health, path: Path) -> None:
    """Four curves over time."""
    minutes = [sample.at_seconds / 60 for sample in samples]
    curves = (
        ("resident memory, MiB", [sample.rss_mb for sample in samples]),
        ("threads", [sample.threads for sample in samples]),
        ("file descriptors", [sample.files for sample in samples]),
    )
    figure, axes = plt.subplots(4, 1, figsize=(8, 9), sharex=True, layout="constrained")
    for axis, (name, values) in zip(axes, curves, strict=False):
        axis.plot(minutes, values)
        axis.set_ylabel(name)
        axis.set_ylim(0)
    at, took = np.array(health.replies).T
    axes[3].plot(at / 60, took * 1000, linewidth=0.5)
    axes[3].set_ylabel("GET /health, ms")
    axes[3].set_xlabel("minutes")
    figure.savefig(path, dpi=100)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Find the rate, soak, draw."""
    photos = [photo for kind in PHOTOS for photo in usual_photos(*kind)]
    for index, photo in enumerate(photos):
        (folder / f"{index}.jpg").write_bytes(photo)
    with running(SERVICE, []) as server:
        rate = options.rate
        if rate is None:
            closed = ("--clients", CLIENTS, "--seconds", BEST_SECONDS)
            best = server.load(folder, *closed).load["photos_per_second"]
            rate = options.share * best / (GOOD + ABANDONED)
        run = asyncio.run(soak(server, photos, rate, options.minutes * 60))
    picture(run.samples, run.health, options.output / "soak.png")
    return {"requests_per_second": round(rate, 2), **summary(run, options.minutes * 60)}


def main() -> None:
    """Soak; print and keep JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--share", type=float, default=0.8, help="of the best throughput")
    parser.add_argument("--rate", type=float, help="requests a second, whatever the capacity")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    found = {"machine": machine(), "minutes": options.minutes, **found}
    text = json.dumps(found, indent=1)
    print(text)
    (options.output / "soak.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
