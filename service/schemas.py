"""The wire: options, request bodies and replies, version 1. Additions are fine, renames are not.

Coordinates are pixels of the image as a viewer shows it (after EXIF rotation); left and right are
the viewer's. The example is what a client sees first in /docs; its lists are shortened.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from service.contract import ModelContract
from service.faces.looks import Search

Heatmap = Literal["none", "overlay"]
Explain = Literal["attention", "evidence"]
Point = Annotated[tuple[float, float], Field(description="[x, y] in pixels.")]
Grid = Annotated[list[list[float]], Field(description="7 rows of 7 values, top left first.")]
Probability = Annotated[float, Field(ge=0, le=1)]
DataUri = Annotated[str, Field(description="data:image/png;base64,...")]


class PredictOptions(BaseModel):
    """Query parameters of POST /predict; an unknown one is an error, not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    heatmap: Heatmap = Field(
        "none", description="overlay: add the aligned face with the chosen map on it, as a PNG."
    )
    explain: Explain = Field(
        "attention",
        description="attention: where the network looked. evidence: what spoke for (positive) and "
        "against (negative) one expression; its mean plus the bias is that expression's logit.",
    )
    class_: str | None = Field(
        None,
        alias="class",
        max_length=64,
        description="The expression whose evidence is wanted (see GET /model); default: the "
        "predicted one of each face. Needs explain=evidence.",
    )
    max_faces: int | None = Field(
        None,
        ge=1,
        description="Read at most this many faces, the largest ones; no more than the service's "
        "setting of the same name (64, unless it was changed).",
    )
    min_score: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Count faces from this detection score on; default: the service's setting.",
    )
    search: Search | None = Field(
        None,
        description="thorough: look for small faces behind a large one, too, which takes two to "
        "seven times the CPU time; quick: where one face fills much of the photo, stop there. "
        "Default: the service's setting.",
    )


class PredictJson(BaseModel):
    """The JSON form of POST /predict."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(
        description="The image file in base64, or as a data URI. A web address is not fetched.",
        examples=["data:image/jpeg;base64,/9j/4AAQSkZJRgABAQ..."],
    )


class PredictBatchJson(BaseModel):
    """The JSON form of POST /predict/batch."""

    model_config = ConfigDict(extra="forbid")

    images: list[str] = Field(
        description="Each an image file in base64, or as a data URI.",
        examples=[["data:image/jpeg;base64,/9j/4AAQSkZJRgABAQ..."]],
    )


class ModelVersion(BaseModel):
    """Which network answered."""

    name: str
    version: str = Field(description="sha256:<hash of the ONNX file>")


class ImageInfo(BaseModel):
    """The image that was read, upright."""

    width: int
    height: int
    format: str = Field(description="JPEG, PNG, WEBP, ...")
    frames: int = Field(description="Frames of an animation; the first one was read.")


class Box(BaseModel):
    """A face's box: left, top, right and bottom edge in pixels."""

    x1: float
    y1: float
    x2: float
    y2: float


class Landmarks(BaseModel):
    """Five points of a face."""

    left_eye: Point
    right_eye: Point
    nose: Point
    mouth_left: Point
    mouth_right: Point


class HeadPoseReply(BaseModel):
    """Head pose in degrees, 0 when the face looks into the camera."""

    yaw: float
    pitch: float
    roll: float


class Expression(BaseModel):
    """The expression and how sure the network is."""

    label: str
    confidence: Probability = Field(description="The probability of `label`.")
    probabilities: dict[str, Probability]


class Attention(BaseModel):
    """Where the network looked, on the aligned face."""

    grid: Grid = Field(description="0 (ignored) to 1.")
    overlay: DataUri | None = Field(None, description="With heatmap=overlay and explain=attention.")


class Evidence(BaseModel):
    """What spoke for one expression: mean of `grid` + `bias` = `logit`."""

    model_config = ConfigDict(serialize_by_alias=True, populate_by_name=True)

    class_: str = Field(alias="class")
    grid: Grid
    bias: float
    logit: float
    overlay: DataUri | None = Field(None, description="With heatmap=overlay.")


class FaceReply(BaseModel):
    """One face."""

    box: Box
    detection_score: Probability
    landmarks: Landmarks
    head_pose: HeadPoseReply
    sharpness: float = Field(
        ge=0,
        description="Detail of the aligned face: variance of its Laplacian over the variance of "
        "its grey levels. Below 0.002 it is too blurred to rely on.",
    )
    expression: Expression
    attention: Attention
    evidence: Evidence | None = Field(None, description="With explain=evidence.")


class Timings(BaseModel):
    """Where the time went, in milliseconds."""

    receive: float = Field(description="Until the body had arrived; not part of total.")
    decode: float = Field(description="From bytes to pixels.")
    detect: float = Field(description="Finding faces, waiting excluded.")
    classify: float = Field(description="Aligning faces and reading them, waiting excluded.")
    queue: float = Field(description="Waiting for a thread or a network.")
    total: float = Field(description="From the body's arrival to this reply, drawing excluded.")


EXAMPLE_REPLY: JsonDict = {
    "request_id": "0b9d3a1f6c5e4f0e9a6f7b1d2c3e4f50",
    "model": {"name": "lan-mobilefacenet-ferplus", "version": "sha256:4f1c..."},
    "image": {"width": 512, "height": 512, "format": "JPEG", "frames": 1},
    "faces_found": 1,
    "faces": [
        {
            "box": {"x1": 177.21, "y1": 66.4, "x2": 275.87, "y2": 201.93},
            "detection_score": 0.9996,
            "landmarks": {
                "left_eye": [207.65, 114.06],
                "right_eye": [252.94, 117.83],
                "nose": [230.18, 146.61],
                "mouth_left": [205.52, 164.31],
                "mouth_right": [243.27, 167.2],
            },
            "head_pose": {"yaw": 2.31, "pitch": -4.02, "roll": 4.76},
            "sharpness": 0.04123,
            "expression": {
                "label": "happiness",
                "confidence": 0.981204,
                "probabilities": {"neutral": 0.018796, "happiness": 0.981204},
            },
            "attention": {"grid": [[0.12, 0.31], [0.27, 0.88]], "overlay": None},
            "evidence": None,
        }
    ],
    "timings_ms": {
        "receive": 0.41,
        "decode": 3.12,
        "detect": 14.8,
        "classify": 13.9,
        "queue": 0.22,
        "total": 32.5,
    },
    "notes": [],
}


class PredictReply(BaseModel):
    """The answer to POST /predict. A photo without a face has an empty list of faces."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_REPLY]})

    request_id: str
    model: ModelVersion
    image: ImageInfo
    faces_found: int = Field(description="Faces found; more than in `faces` where max_faces cut.")
    faces: list[FaceReply] = Field(description="Largest first.")
    timings_ms: Timings
    notes: list[str] = Field(description="What a reader should know about this answer.")


class Status(BaseModel):
    """The answer of a health endpoint that has nothing to complain of."""

    status: Literal["live", "ready"]


class NetworkInfo(BaseModel):
    """A network that is loaded."""

    name: str
    version: str = Field(description="sha256:<hash of the ONNX file>")
    provider: str = Field(description="ONNX Runtime execution provider in use.")
    licence: str

    @property
    def sha256(self) -> str:
        """Of the ONNX file, hex."""
        return self.version.removeprefix("sha256:")


class ClassifierInfo(NetworkInfo):
    """The expression network."""

    labels: list[str]
    contract: ModelContract = Field(description="The file's metadata: what the network expects.")


class DetectorInfo(NetworkInfo):
    """The face detector."""

    canvas_sizes: list[tuple[int, int]] = Field(description="[height, width] in pixels.")


class ModelReply(BaseModel):
    """The answer to GET /model."""

    classifier: ClassifierInfo
    detector: DetectorInfo


class FieldProblem(BaseModel):
    """One option that is not valid."""

    location: str = Field(examples=["query.max_faces"])
    message: str


class Problem(BaseModel):
    """Problem details (RFC 9457), the one shape of every error."""

    type: str = Field(
        description="Names the kind of problem; never changes.",
        examples=["urn:problem-type:lan-fer:image-too-large"],
    )
    title: str = Field(description="The kind of problem in words; the same for each occurrence.")
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="What went wrong this time.")
    request_id: str
    errors: list[FieldProblem] | None = Field(None, description="Each option that is not valid.")
    error: str | None = Field(None, description="Under /v2: the detail once more.")


class BatchItem(BaseModel):
    """What became of one photo: `reply` where it could be read, else `problem`."""

    status: int = Field(description="The status that POST /predict would have.", examples=[200])
    reply: PredictReply | None
    problem: Problem | None


class BatchReply(BaseModel):
    """The answer to POST /predict/batch."""

    request_id: str
    results: list[BatchItem] = Field(description="In the order of the photos.")
