"""A detector's boxes against annotated ones, by the height of the face.

    python -m benchmarks.boxes [--detector models/retinaface_mnet025.onnx ...] [--faces FACES]

Takes any ONNX file that the service's setting `detector_path` takes, and searches as the service
does. FACES is one's own annotated set (benchmarks.annotations: faces.csv with the columns
path,x1,y1,x2,y2, or faces.jsonl); without it, photos are composed from real faces of known sizes
(benchmarks.photos).

Each box is matched with one face at most. `found` counts faces whose box overlaps theirs by half
(intersection over union), `mean IoU` is over those, and `false finds` are the boxes left over, by
their own height: a face that nobody annotated counts as one.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from benchmarks.annotations import AnnotationError, annotated_scenes, read_annotations
from benchmarks.photos import SIZES, Scene
from benchmarks.recall import FOUND_IOU, HEIGHTS, Boxes, Find, overlaps, scene_of, service_search
from service.errors import ServiceError
from service.faces.detector import FaceDetector
from service.runtime import SessionSettings
from service.settings import Settings

# Lower ends of the rows, in pixels of a face's height.
BANDS = (0, 16, 32, 64, 128)


@dataclass
class Band:
    """Counts of faces of about one height."""

    faces: int = 0
    found: int = 0
    overlap: float = 0.0
    """Sum of the found faces' intersection over union."""
    false: int = 0

    @property
    def mean_iou(self) -> float:
        """Of the found faces, 0..1; NaN where there are none."""
        return self.overlap / self.found if self.found else math.nan

    def __add__(self, other: Band) -> Band:
        return Band(
            self.faces + other.faces,
            self.found + other.found,
            self.overlap + other.overlap,
            self.false + other.false,
        )

    def row(self, title: str) -> str:
        """A row of the table."""
        share = f"{self.found / self.faces:.1%}" if self.faces else "-"
        iou = f"{self.mean_iou:.3f}" if self.found else "-"
        return f"| {title} | {self.faces} | {self.found} ({share}) | {iou} | {self.false} |"


class Report:
    """What one detector found, over all photos that were added."""

    def __init__(self) -> None:
        self.photos = 0
        self.bands = [Band() for _ in BANDS]

    def add(self, annotated: Boxes, found: Boxes) -> None:
        """One photo: boxes [N,4] and [M,4] (x1, y1, x2, y2) in its pixels."""
        self.photos += 1
        table = overlaps(annotated, found)
        faces, boxes = linear_sum_assignment(np.where(table >= FOUND_IOU, table, 0), maximize=True)
        matched = table[faces, boxes] >= FOUND_IOU
        faces, boxes = faces[matched], boxes[matched]
        for height in heights(annotated):
            self._band(height).faces += 1
        for height, overlap in zip(heights(annotated[faces]), table[faces, boxes], strict=True):
            self._band(height).found += 1
            self._band(height).overlap += float(overlap)
        for height in heights(np.delete(found, boxes, 0)):
            self._band(height).false += 1

    def _band(self, height: float) -> Band:
        return self.bands[bisect.bisect_right(BANDS, height) - 1]

    def rows(self) -> dict[str, Band]:
        """The counts by title of the row; the last is of all."""
        ends = [f"{low} to {high}" for low, high in itertools.pairwise(BANDS)]
        named = dict(zip((*ends, f"{BANDS[-1]} and more"), self.bands, strict=True))
        return named | {"all": sum(self.bands, Band())}

    def text(self) -> str:
        """A table in Markdown."""
        head = "| face height, pixels | faces | found | mean IoU | false finds |"
        rows = [band.row(title) for title, band in self.rows().items()]
        return "\n".join((head, "| --- | --- | --- | --- | --- |", *rows))

    def as_dict(self) -> dict[str, object]:
        """Plain values; mean_iou is null where no face was found."""
        rows = {
            title: {"faces": b.faces, "found": b.found, "false": b.false}
            | {"mean_iou": round(b.mean_iou, 4) if b.found else None}
            for title, b in self.rows().items()
        }
        return {"photos": self.photos, "heights": rows}


def heights(boxes: Boxes) -> list[float]:
    """Of boxes [N,4]; rounded, so that no last digit decides on a row."""
    return [round(float(height), 3) for height in boxes[:, 3] - boxes[:, 1]]


def composed_scenes(photos: int, size: str) -> Iterator[Scene]:
    """`photos` of each height of HEIGHTS; always the same ones."""
    for height in HEIGHTS:
        rng = np.random.default_rng(height)
        for _ in range(photos):
            yield scene_of("group", size, height, rng)


def compare(searches: Mapping[str, Find], scenes: Iterable[Scene]) -> dict[str, Report]:
    """Every search on every photo."""
    reports = {name: Report() for name in searches}
    for scene in scenes:
        for name, find in searches.items():
            reports[name].add(scene.boxes, find(scene.pixels))
    return reports


def run(options: argparse.Namespace) -> None:
    """Print a report for each detector. Raises AnnotationError, ServiceError."""
    annotations = read_annotations(options.faces) if options.faces else None
    searches = {
        str(path): service_search(FaceDetector.load(path, SessionSettings("cpu")))
        for path in options.detector
    }
    if annotations is None:
        scenes = composed_scenes(options.photos, options.size)
    else:
        scenes = annotated_scenes(annotations)
    reports = compare(searches, scenes)
    if options.json:
        print(json.dumps({name: report.as_dict() for name, report in reports.items()}))
        return
    for name, report in reports.items():
        print(f"{name}, {report.photos} photos\n\n{report.text()}\n")


def main(arguments: list[str] | None = None) -> int:
    """Errors that a user can mend print one line and give exit code 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detector", type=Path, nargs="+", default=[Settings().detector_path])
    parser.add_argument("--faces", type=Path, help="annotated set (default: composed photos)")
    parser.add_argument("--photos", type=int, default=6, help="composed, of each height")
    parser.add_argument("--size", choices=tuple(SIZES), default="1080p", help="of composed photos")
    parser.add_argument("--json", action="store_true", help="one line of JSON in place of tables")
    try:
        run(parser.parse_args(arguments))
    except (AnnotationError, ServiceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
