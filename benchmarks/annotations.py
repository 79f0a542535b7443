"""One's own annotated set: photos and the boxes of their faces, in pixels of the upright photos.

    faces.csv     path,x1,y1,x2,y2     a row a face; a path alone is a photo without faces
    faces.jsonl   {"path": "a.jpg", "boxes": [[x1, y1, x2, y2], ...]}     a line a photo

Paths are from the file's folder, or absolute.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.photos import Scene
from benchmarks.recall import Boxes
from service.errors import ServiceError
from training.preparation import read_image

COLUMNS = ("path", "x1", "y1", "x2", "y2")
LAYOUT = (
    "a .csv file with the columns path,x1,y1,x2,y2, or a .jsonl file with lines such as "
    '{"path": "a.jpg", "boxes": [[x1, y1, x2, y2]]}'
)
Line = tuple[str, list[Sequence[float]]]


class AnnotationError(Exception):
    """An annotated set cannot be used; the message says where and why."""


def read_annotations(file: Path) -> dict[Path, Boxes]:
    """The boxes [N,4] of each image. Raises AnnotationError naming the line that is wrong."""
    readers = {".csv": _csv_boxes, ".jsonl": _json_boxes}
    if file.suffix.lower() not in readers:
        raise AnnotationError(f"{file}: expected {LAYOUT}")
    found: dict[Path, list[Sequence[float]]] = {}
    try:
        for name, boxes in readers[file.suffix.lower()](file):
            found.setdefault(file.parent / name, []).extend(boxes)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AnnotationError(f"{file}: cannot be read ({error}); expected {LAYOUT}") from error
    if not found:
        raise AnnotationError(f"{file}: names no image; expected {LAYOUT}")
    missing = [path for path in found if not path.is_file()]
    if missing:
        raise AnnotationError(
            f"{file}: {missing[0]} is not there ({len(missing)} of {len(found)} images are "
            "missing); paths are from the file's folder, or absolute"
        )
    return {path: np.array(boxes, np.float64).reshape(-1, 4) for path, boxes in found.items()}


def _csv_boxes(file: Path) -> Iterator[Line]:
    # utf-8-sig: spreadsheets write a byte order mark before the first column's name.
    with file.open(newline="", encoding="utf-8-sig") as lines:
        table = csv.DictReader(lines)
        lacking = [name for name in COLUMNS if name not in (table.fieldnames or ())]
        if lacking:
            raise AnnotationError(f"{file}: no column {', '.join(lacking)}; expected {LAYOUT}")
        for row in table:
            texts = [(row[name] or "").strip() for name in COLUMNS[1:]]
            boxes = [_box(texts, file, table.line_num)] if any(texts) else []
            yield _path(row["path"], file, table.line_num), boxes


def _json_boxes(file: Path) -> Iterator[Line]:
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, boxes = entry["path"], list(entry["boxes"])
        except (ValueError, KeyError, TypeError) as error:
            raise AnnotationError(f"{file}, line {number}: expected {LAYOUT}") from error
        yield _path(name, file, number), [_box(box, file, number) for box in boxes]


def _path(name: object, file: Path, number: int) -> str:
    if not isinstance(name, str) or not name.strip():
        raise AnnotationError(f"{file}, line {number}: no path; expected {LAYOUT}")
    return name.strip()


def _box(values: object, file: Path, number: int) -> Sequence[float]:
    try:
        x1, y1, x2, y2 = np.asarray(values, np.float64).tolist()
        sound = x1 < x2 < math.inf and y1 < y2 < math.inf and min(x1, y1) > -math.inf
    except (ValueError, TypeError):
        sound = False
    if not sound:
        raise AnnotationError(
            f"{file}, line {number}: the box is {values}; expected four numbers x1, y1, x2, y2 "
            "in pixels with x1 < x2 and y1 < y2"
        )
    return x1, y1, x2, y2


def annotated_scenes(annotations: Mapping[Path, Boxes]) -> Iterator[Scene]:
    """Each image with its boxes, cut at its border as the detector's are.

    Raises AnnotationError for an image that cannot be decoded or a box outside its image.
    """
    for path, boxes in annotations.items():
        try:
            pixels = read_image(path)
        except (ServiceError, OSError) as error:
            raise AnnotationError(f"{path}: {error}") from error
        height, width = pixels.shape[:2]
        cut = boxes.clip(0, (width, height) * 2)
        if (cut[:, 2:] <= cut[:, :2]).any():
            raise AnnotationError(f"{path}: a box lies outside its {width} x {height} pixels")
        yield Scene(pixels, cut)
