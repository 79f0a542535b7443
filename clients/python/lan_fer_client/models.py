"""What goes over the wire, version 1. A test of the service holds the two sides together.

Coordinates are pixels of the image as a viewer shows it (after EXIF rotation); left and right are
the viewer's. Fields that a newer service adds are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field

Point = tuple[float, float]
Grid = list[list[float]]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True, serialize_by_alias=True)


class PredictOptions(_Model):
    """How to read a photo; what is None is left to the service."""

    # A reply may have fields that are new; an option that is unknown is a mistake.
    model_config = ConfigDict(extra="forbid")

    heatmap: Literal["none", "overlay"] = "none"
    """overlay: add the aligned face with the chosen map on it, as a PNG."""
    explain: Literal["attention", "evidence"] = "attention"
    """The map: where the network looked, or what spoke for a class."""
    class_: str | None = Field(None, alias="class")
    """Whose evidence is wanted; needs explain="evidence"."""
    max_faces: int | None = None
    """Read at most this many faces, the largest ones."""
    min_score: float | None = None
    """Count faces from this detection score on, 0..1."""
    search: Literal["quick", "thorough"] | None = None
    """thorough: look for small faces behind a large one, too, which takes longer."""


class ModelVersion(_Model):
    """Which network answered."""

    name: str
    version: str


class ImageInfo(_Model):
    """The image that was read, upright."""

    width: int
    height: int
    format: str
    frames: int


class Box(_Model):
    """A face's box: left, top, right and bottom edge in pixels."""

    x1: float
    y1: float
    x2: float
    y2: float


class Landmarks(_Model):
    """Five points of a face, [x, y] in pixels."""

    left_eye: Point
    right_eye: Point
    nose: Point
    mouth_left: Point
    mouth_right: Point


class HeadPoseReply(_Model):
    """Head pose in degrees, 0 when the face looks into the camera."""

    yaw: float
    pitch: float
    roll: float


class Expression(_Model):
    """The expression and how sure the network is, 0..1."""

    label: str
    confidence: float
    probabilities: dict[str, float]


class Attention(_Model):
    """Where the network looked, on the aligned face: 7 rows of 7 values, 0..1."""

    grid: Grid
    overlay: str | None = None


class Evidence(_Model):
    """What spoke for one expression: mean of `grid` + `bias` = `logit`."""

    class_: str = Field(alias="class")
    grid: Grid
    bias: float
    logit: float
    overlay: str | None = None


class FaceReply(_Model):
    """One face."""

    box: Box
    detection_score: float
    landmarks: Landmarks
    head_pose: HeadPoseReply
    sharpness: float
    """Below 0.002 the face is too blurred to rely on."""
    expression: Expression
    attention: Attention
    evidence: Evidence | None = None


class Timings(_Model):
    """Where the time went, in milliseconds."""

    receive: float
    decode: float
    detect: float
    classify: float
    queue: float
    total: float


class PredictReply(_Model):
    """The faces of one photo, largest first; a photo without a face has none."""

    request_id: str
    model: ModelVersion
    image: ImageInfo
    faces_found: int
    # One that is wrong will do: notes on millions would take gigabytes.
    faces: Annotated[list[FaceReply], FailFast()]
    timings_ms: Timings
    notes: list[str]


class FieldProblem(_Model):
    """One option that is not valid."""

    location: str
    message: str


class Problem(_Model):
    """Problem details (RFC 9457), the one shape of every error."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldProblem] | None = None


class BatchItem(_Model):
    """What became of one photo of several."""

    status: int
    reply: PredictReply | None
    problem: Problem | None


class BatchReply(_Model):
    """The answer to several photos, in their order."""

    request_id: str
    results: Annotated[list[BatchItem], FailFast()]


class Status(_Model):
    """The answer of a service that takes photos."""

    status: Literal["live", "ready"]


class NetworkInfo(_Model):
    """A network that is loaded."""

    name: str
    version: str
    provider: str
    licence: str


class ClassifierInfo(NetworkInfo):
    """The expression network."""

    labels: list[str]
    contract: dict[str, Any]


class DetectorInfo(NetworkInfo):
    """The face detector."""

    canvas_sizes: list[tuple[int, int]]


class ModelReply(_Model):
    """What is being served."""

    classifier: ClassifierInfo
    detector: DetectorInfo
