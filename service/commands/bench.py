"""`lan-fer bench`: how fast this machine reads photos, by stage, in process."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from service.commands.flags import (
    NETWORK_SETTINGS,
    add_settings,
    answer,
    given_settings,
    seconds_above_0,
)
from service.commands.flags import report as report_failures
from service.commands.progress import Bar, progress
from service.errors import ImageFileError, RequestError, ServiceError
from service.files import read_file
from service.sources import find_sources

if TYPE_CHECKING:
    from service.local import Recognizer
    from service.schemas import PredictReply

SUMMARY = "measure how fast this machine reads photos"
STAGES = ("decode", "detect", "classify", "queue", "total")


def add_parser(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench`."""
    parser.description = (
        "Read photos for a while, first one at a time (milliseconds by stage), then as many side "
        "by side as this machine takes (photos a second). In process: no HTTP is measured."
    )
    parser.epilog = (
        "examples:\n"
        "  lan-fer bench photo.jpg\n"
        "  lan-fer bench photos/ --seconds 20 --intra-op-threads 4 --json"
    )
    parser.add_argument("paths", nargs="+", metavar="PHOTO", help="photo, folder or pattern")
    parser.add_argument(
        "--seconds",
        type=seconds_above_0,
        default=5.0,
        help="of each measurement (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="numbers for a program")
    add_settings(parser.add_argument_group("networks and limits"), NETWORK_SETTINGS)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print. Raises what reading the photos raises."""
    from service.local import Recognizer

    with Recognizer.load(**given_settings(arguments)) as recognizer:
        limit = recognizer.settings.max_body_bytes
        photos: list[bytes] = []
        failures: list[tuple[str, str]] = []
        faces = 0
        for path in find_sources(arguments.paths):
            try:
                photo = read_file(path, limit)
                faces += len(recognizer.predict(photo).faces)  # warms up, too
                photos.append(photo)
            except (ImageFileError, RequestError) as error:
                failures.append((str(path), error.detail))
        code = report_failures(failures, len(photos) + len(failures))
        if not photos:
            return code
        with progress(2, "measurements") as bar:
            report = {
                "photos": len(photos),
                "faces": faces,
                "provider": recognizer.networks.provider,
                "milliseconds": _one_at_a_time(recognizer, photos, arguments.seconds, bar),
                "photos_per_second": _side_by_side(recognizer, photos, arguments.seconds, bar),
            }
    answer(json.dumps(report, indent=2) if arguments.json else _as_text(report))
    return code


def _one_at_a_time(
    recognizer: Recognizer, photos: Sequence[bytes], seconds: float, bar: Bar
) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of each stage in milliseconds."""
    end = time.perf_counter() + seconds
    replies: list[PredictReply] = []
    for photo in itertools.cycle(photos):
        replies.append(recognizer.predict(photo))
        # Every photo as often as the others, so that the median means the same on any machine.
        if time.perf_counter() >= end and len(replies) % len(photos) == 0:
            break
    bar.update()
    taken = {stage: [getattr(r.timings_ms, stage) for r in replies] for stage in STAGES}
    return {
        stage: {
            "median": round(float(np.median(values)), 2),
            "p95": round(float(np.percentile(values, 95)), 2),
        }
        for stage, values in taken.items()
    }


def _side_by_side(
    recognizer: Recognizer, photos: Sequence[bytes], seconds: float, bar: Bar
) -> float:
    """Photos a second with as many in flight as predict_many takes."""
    started = time.perf_counter()
    end = started + seconds
    again = itertools.takewhile(lambda _: time.perf_counter() < end, itertools.cycle(photos))
    count = 0
    for reply in recognizer.predict_many(again):
        if isinstance(reply, ServiceError):
            raise reply
        count += 1
    bar.update()
    return round(count / (time.perf_counter() - started), 2)


def _as_text(report: dict[str, object]) -> str:
    lines = [f"{report['photos']} photos, {report['faces']} faces, {report['provider']}", ""]
    lines.append(f"{'one at a time':16}{'median':>10}{'95 %':>10}   ms a photo")
    milliseconds = report["milliseconds"]
    assert isinstance(milliseconds, dict)
    for stage, values in milliseconds.items():
        lines.append(f"  {stage:14}{values['median']:10.2f}{values['p95']:10.2f}")
    lines += ["", f"side by side: {report['photos_per_second']} photos a second"]
    return "\n".join(lines)
