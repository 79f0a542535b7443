"""Faces of a data set: landmarks and the transform to the aligned crop, stored per image."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import RequestError
from service.faces.alignment import ARCFACE_TEMPLATE, similarity_transform
from service.faces.detector import FaceDetector
from service.faces.face import Face
from service.imaging import ImageLimits, decode_image
from training.progress import progress

# Data sets are trusted more than requests; this only guards against a broken header.
LIMITS = ImageLimits(max_bytes=200_000_000, max_pixels=200_000_000)
# Changes whenever stored landmarks would come out differently, so that old files are not mixed in.
PIPELINE_VERSION = 4

FOUND, NO_FACE, UNREADABLE = "found", "no_face", "unreadable"


class PreparationError(Exception):
    """A stored preparation does not belong to this detector or data set."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Geometry of N images, in the order asked for."""

    status: tuple[str, ...]
    """[N] "found", "no_face" or "unreadable"."""
    landmarks: NDArray[np.float32]
    """[N,5,2] pixels of the image; NaN where no face was found."""
    matrices: NDArray[np.float64]
    """[N,2,3] image pixels -> 112 x 112 crop. Without a face: the mean transform of the found
    ones, scaled to the image, since such images are nearly always tight crops of a face."""

    @property
    def counts(self) -> Counter[str]:
        """Images by status."""
        return Counter(self.status)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """[N] false where the image could not be decoded."""
        return np.array([s != UNREADABLE for s in self.status], dtype=bool)

    def subset(self, kept: NDArray[np.bool_]) -> Prepared:
        """The images where `kept` [N] is true."""
        status = tuple(s for s, keep in zip(self.status, kept, strict=True) if keep)
        return Prepared(status, self.landmarks[kept], self.matrices[kept])

    def with_landmarks(self, known: NDArray[np.float32]) -> Prepared:
        """Known landmarks [N,5,2] in place of the detector's; rows with NaN change nothing."""
        given = np.isfinite(known).all((1, 2)) & self.readable
        landmarks, matrices = self.landmarks.copy(), self.matrices.copy()
        landmarks[given] = known[given]
        for index in np.flatnonzero(given):
            matrices[index] = similarity_transform(known[index], ARCFACE_TEMPLATE)
        status = tuple(FOUND if g else s for g, s in zip(given, self.status, strict=True))
        return Prepared(status, landmarks, matrices)


def read_image(path: Path) -> NDArray[np.uint8]:
    """[H,W,3] uint8 RGB, upright, by the service's own decoder. Raises RequestError, OSError."""
    return decode_image(path.read_bytes(), LIMITS).pixels


def prepare(
    paths: Sequence[Path],
    store: Path,
    detector: FaceDetector,
    *,
    boxes: NDArray[np.float32] | None = None,
    workers: int = 2,
) -> Prepared:
    """Find the face of each image, keeping results in `store` (JSON lines) as they come.

    Results belong to an image's bytes, not to its name: run again after an interruption, it goes
    on where it stopped; changed images are examined anew; data sets may share a store.
    The largest face is taken, or, where `boxes` [N,4] (x1, y1, x2, y2) has no NaN, the face that
    overlaps its box most.
    Raises PreparationError where `store` was made by another detector or version.
    """
    header = {"detector": detector.sha256, "version": PIPELINE_VERSION}
    done = _read_store(store, header)
    tasks = _tasks(paths, boxes)
    missing = [task for task in tasks if task.sha256 is None or task.key not in done]
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.open("a") as file, ThreadPoolExecutor(workers) as pool:
        if not done and not file.tell():
            file.write(json.dumps(header) + "\n")
        entries: Iterable[dict[str, Any]] = pool.map(lambda t: _examine(t, detector), missing)
        examined = progress(entries, "faces", len(missing), unit="img")
        for task, entry in zip(missing, examined, strict=True):
            file.write(json.dumps(entry) + "\n")
            done[task.key] = entry
    return _assemble([done[task.key] for task in tasks])


@dataclass(frozen=True)
class _Task:
    """An image to find the face of."""

    path: Path
    sha256: str | None
    """Of the file's bytes; None where it cannot be read."""
    box: tuple[float, ...]
    """The face that is meant, x1, y1, x2, y2; empty for the largest."""

    @property
    def key(self) -> tuple[str | None, tuple[float, ...]]:
        """What the result depends on."""
        return self.sha256, self.box


def _tasks(paths: Sequence[Path], boxes: NDArray[np.float32] | None) -> list[_Task]:
    known = [()] * len(paths) if boxes is None else [_box(box) for box in boxes]
    return [_Task(path, _digest(path), box) for path, box in zip(paths, known, strict=True)]


def _box(box: NDArray[np.float32]) -> tuple[float, ...]:
    return tuple(round(float(v), 2) for v in box) if np.isfinite(box).all() else ()


def _read_store(
    store: Path, header: dict[str, Any]
) -> dict[tuple[str | None, tuple[float, ...]], dict[str, Any]]:
    if not store.is_file():
        return {}
    lines = list(_json_lines(store))
    if lines and lines[0] != header:
        raise PreparationError(
            f"{store}: made by {lines[0]}, this is {header}; remove the file to prepare anew"
        )
    return {(entry.get("sha256"), tuple(entry.get("meant", ()))): entry for entry in lines[1:]}


def _json_lines(store: Path) -> Iterator[dict[str, Any]]:
    text = store.read_text()
    # An interrupted run may leave half a line at the end: drop it, its image is done again.
    complete = text[: text.rfind("\n") + 1]
    if complete != text:
        store.write_text(complete)
    return (json.loads(line) for line in complete.splitlines())


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _examine(task: _Task, detector: FaceDetector) -> dict[str, Any]:
    name = f"{task.path.parent.name}/{task.path.name}"
    entry: dict[str, Any] = {"image": name, "sha256": task.sha256}
    if task.box:
        entry["meant"] = task.box
    try:
        image = read_image(task.path)
    except (RequestError, OSError) as error:
        return entry | {"status": UNREADABLE, "reason": str(error)}
    entry["size"] = [image.shape[0], image.shape[1]]
    faces = detector.detect(image)
    if task.box:
        faces = _by_overlap(faces, np.array(task.box))
    return entry | (_face_entry(faces[0]) if faces else {"status": NO_FACE})


def _by_overlap(faces: Sequence[Face], box: NDArray[np.float64]) -> list[Face]:
    """The faces that overlap `box`, the largest intersection over union first."""

    def overlap(face: Face) -> float:
        sides = np.minimum(face.box[2:], box[2:]) - np.maximum(face.box[:2], box[:2])
        shared = float(np.maximum(sides, 0).prod())
        areas = [float((b[2:] - b[:2]).prod()) for b in (face.box, box)]
        return shared / max(sum(areas) - shared, 1e-9)

    return sorted((f for f in faces if overlap(f) > 0), key=overlap, reverse=True)


def _face_entry(face: Face) -> dict[str, Any]:
    return {
        "status": FOUND,
        "score": round(face.score, 4),
        "box": [round(float(v), 3) for v in face.box],
        "landmarks": [[round(float(x), 3), round(float(y), 3)] for x, y in face.landmarks],
    }


def _assemble(entries: Sequence[dict[str, Any]]) -> Prepared:
    status = tuple(entry["status"] for entry in entries)
    landmarks = np.full((len(entries), 5, 2), np.nan, np.float32)
    for index, entry in enumerate(entries):
        if entry["status"] == FOUND:
            landmarks[index] = entry["landmarks"]
    sizes = np.array([entry.get("size", (1, 1)) for entry in entries], np.float64)
    return Prepared(status, landmarks, transforms(landmarks, sizes))


def transforms(landmarks: NDArray[np.float32], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N,5,2] landmarks (NaN: no face) and [N,2] (height, width) -> [N,2,3] to the 112 crop."""
    # Relative to the image's middle and longer side, so that one mean serves all shapes.
    middles = sizes[:, None, ::-1] / 2
    scales = sizes.max(1)[:, None, None]
    found = np.isfinite(landmarks.sum((1, 2)))
    relative = (landmarks[found] - middles[found]) / scales[found]
    nominal = relative.mean(0) if found.any() else np.array(ARCFACE_TEMPLATE) / 112 - 0.5
    filled = np.where(found[:, None, None], landmarks, nominal * scales + middles)
    return np.stack([similarity_transform(points, ARCFACE_TEMPLATE) for points in filled])
