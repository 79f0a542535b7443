"""Answers as flat rows for CSV and Parquet: one for each face.

A photo without a face has one row too, its face columns empty: whoever counts photos, or goes on
with a job, sees that it was read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.schemas import FaceReply, Landmarks, PredictReply

Value = str | int | float | None
Row = dict[str, Value]

PHOTO_COLUMNS: dict[str, type] = {"source": str, "width": int, "height": int, "faces_found": int}
FACE_COLUMNS: dict[str, type] = {
    **dict.fromkeys(("x1", "y1", "x2", "y2", "detection_score"), float),
    **{f"{point}_{axis}": float for point in Landmarks.model_fields for axis in "xy"},
    **dict.fromkeys(("yaw", "pitch", "roll", "sharpness"), float),
    "expression": str,
    "confidence": float,
}
PROBABILITY = "p_"


@dataclass(frozen=True)
class Entry:
    """What one photo, or one frame of a video, adds to an output."""

    documents: Sequence[Mapping[str, Any]]
    """For JSON lines; each names its `source`."""
    rows: Sequence[Row]
    """For tables; the columns below."""


def columns(labels: Sequence[str]) -> dict[str, type]:
    """The columns of a table, in order: source, photo, face, then `p_<label>` for each label."""
    return PHOTO_COLUMNS | {"face": int} | face_columns(labels)


def face_columns(labels: Sequence[str]) -> dict[str, type]:
    """The columns of one face, in order: box, score, landmarks, pose, expression, `p_<label>`."""
    return FACE_COLUMNS | {PROBABILITY + label: float for label in labels}


def rows(source: str, reply: PredictReply) -> list[Row]:
    """One row a face, largest first; `face` counts from 0. Pixels, degrees and 0..1, as in JSON."""
    photo: Row = {
        "source": source,
        "width": reply.image.width,
        "height": reply.image.height,
        "faces_found": reply.faces_found,
    }
    if not reply.faces:
        return [photo]
    return [photo | {"face": i} | face_row(face) for i, face in enumerate(reply.faces)]


def face_row(face: FaceReply) -> Row:
    """The values of `face_columns`."""
    points = {
        f"{name}_{axis}": value
        for name, point in face.landmarks.model_dump().items()
        for axis, value in zip("xy", point, strict=True)
    }
    return {
        **face.box.model_dump(),
        "detection_score": face.detection_score,
        **points,
        **face.head_pose.model_dump(),
        "sharpness": face.sharpness,
        "expression": face.expression.label,
        "confidence": face.expression.confidence,
        **{PROBABILITY + name: p for name, p in face.expression.probabilities.items()},
    }
