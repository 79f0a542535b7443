"""What was recognised, as a client sees it: the JSON reply, or the photo with everything drawn.

Both are for a worker thread: they encode pictures.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pybase64
from numpy.typing import NDArray

from service.drawing import FaceAnnotation, draw_faces
from service.errors import ImageTooLargeError
from service.expression import ExpressionModel
from service.faces.quality import sharpness
from service.heatmap import heat_overlay
from service.imaging import encode_image
from service.observing import Stage
from service.pipeline import ReadFace, Recognition
from service.schemas import (
    Attention,
    Box,
    Evidence,
    Expression,
    FaceReply,
    HeadPoseReply,
    ImageInfo,
    Landmarks,
    ModelVersion,
    PredictOptions,
    PredictReply,
    Timings,
)

# Decimals: no more than the numbers are worth, and sums that still add up.
PIXEL_DECIMALS, DEGREE_DECIMALS, MS_DECIMALS = 2, 2, 2
SCORE_DECIMALS, ATTENTION_DECIMALS, LOGIT_DECIMALS = 4, 4, 6
SHARPNESS_DECIMALS = 5
# What goes from the engine to the client passes the event loop in one piece.
MAX_PICTURE_BYTES = 64 * 1024 * 1024


class Reply(NamedTuple):
    """What a request wants to hear of a photo; it can go to another process."""

    options: PredictOptions
    request_id: str
    receive_seconds: float = 0.0

    def writer(self, classifier: ExpressionModel) -> ReplyWriter:
        """Its writer, for what `classifier` has read."""
        return ReplyWriter(classifier, self.options, self.request_id, self.receive_seconds)


class Written(NamedTuple):
    """A reply as it is sent, and what logs and metrics say of it."""

    content: str | bytes
    size: tuple[int, int]
    """(height, width) of the upright photo."""
    format: str
    faces_found: int
    seconds: dict[Stage, float]
    render_seconds: float


@dataclass(frozen=True)
class WriteReply:
    """Makes the reply of POST /predict of a recognition: JSON, or the photo drawn on."""

    reply: Reply
    media_type: str

    def __call__(self, recognition: Recognition, classifier: ExpressionModel) -> Written:
        """See `service.pipeline.Then`."""
        started = time.perf_counter()
        writer = self.reply.writer(classifier)
        content: str | bytes
        if self.media_type == "application/json":
            content = writer.json(recognition)
        else:
            content = writer.picture(recognition, self.media_type)
        return Written(
            content,
            recognition.image.size,
            recognition.image.format,
            recognition.faces_found,
            recognition.seconds,
            time.perf_counter() - started,
        )


@dataclass(frozen=True)
class KeepReply:
    """Makes one item of the reply of POST /predict/batch of a recognition."""

    reply: Reply

    def __call__(self, recognition: Recognition, classifier: ExpressionModel) -> PredictReply:
        """See `service.pipeline.Then`."""
        return self.reply.writer(classifier).reply(recognition)


@dataclass(frozen=True, eq=False)
class Faces:
    """What is left of a photo when its pixels are let go."""

    faces: tuple[ReadFace, ...]
    seconds: dict[Stage, float]


def keep_faces(recognition: Recognition, _: ExpressionModel) -> Faces:
    """See `service.pipeline.Then`."""
    return Faces(recognition.faces, recognition.seconds)


@dataclass(frozen=True, eq=False)
class ReplyWriter:
    """Writes replies for one request's options."""

    classifier: ExpressionModel
    options: PredictOptions
    request_id: str
    receive_seconds: float

    def json(self, recognition: Recognition) -> str:
        """The reply as a JSON document."""
        return self.reply(recognition).model_dump_json()

    def reply(self, recognition: Recognition) -> PredictReply:
        """The reply as an object."""
        height, width = recognition.image.size
        milliseconds = {
            stage: round(seconds * 1000, MS_DECIMALS)
            for stage, seconds in {
                "receive": self.receive_seconds,
                **recognition.seconds,
            }.items()
        }
        contract = self.classifier.contract
        return PredictReply(
            request_id=self.request_id,
            model=ModelVersion(name=contract.name, version=f"sha256:{self.classifier.sha256}"),
            image=ImageInfo(
                width=width,
                height=height,
                format=recognition.image.format,
                frames=recognition.image.frames,
            ),
            faces_found=recognition.faces_found,
            faces=[self._face(face) for face in recognition.faces],
            timings_ms=Timings.model_validate(milliseconds),
            notes=_notes(recognition),
        )

    def picture(self, recognition: Recognition, media_type: str) -> bytes:
        """The photo with boxes, landmarks, labels and heat maps drawn on it, encoded.

        Raises ImageTooLargeError where that is more than is sent.
        """
        content = encode_image(self.drawn(recognition), media_type)
        if len(content) > MAX_PICTURE_BYTES:
            raise ImageTooLargeError(
                f"Drawn on, the photo has {len(content)} bytes as {media_type}; at most "
                f"{MAX_PICTURE_BYTES} are sent. Ask for image/jpeg, or send a smaller photo."
            )
        return content

    def drawn(self, recognition: Recognition) -> NDArray[np.uint8]:
        """The same picture as pixels, [H,W,3] uint8 RGB."""
        annotations = [self._annotation(face) for face in recognition.faces]
        return draw_faces(recognition.image.pixels, annotations)

    def _face(self, face: ReadFace) -> FaceReply:
        where = face.found
        x1, y1, x2, y2 = _row(where.face.box, PIXEL_DECIMALS)
        points = [(x, y) for x, y in _grid(where.face.landmarks, PIXEL_DECIMALS)]
        pose = where.pose
        return FaceReply(
            box=Box(x1=x1, y1=y1, x2=x2, y2=y2),
            detection_score=round(where.face.score, SCORE_DECIMALS),
            landmarks=Landmarks(**dict(zip(Landmarks.model_fields, points, strict=True))),
            head_pose=HeadPoseReply(
                yaw=round(pose.yaw, DEGREE_DECIMALS),
                pitch=round(pose.pitch, DEGREE_DECIMALS),
                roll=round(pose.roll, DEGREE_DECIMALS),
            ),
            sharpness=round(sharpness(where.crop), SHARPNESS_DECIMALS),
            expression=self._expression(face),
            attention=self._attention(face),
            evidence=self._evidence(face) if self.options.explain == "evidence" else None,
        )

    def _expression(self, face: ReadFace) -> Expression:
        labels = self.classifier.contract.labels
        values = _row(face.reading.probabilities, LOGIT_DECIMALS)
        best = int(face.reading.probabilities.argmax())
        return Expression(
            label=labels[best],
            confidence=values[best],
            probabilities=dict(zip(labels, values, strict=True)),
        )

    def _attention(self, face: ReadFace) -> Attention:
        attention = face.reading.attention
        return Attention(
            grid=_grid(attention, ATTENTION_DECIMALS),
            overlay=self._overlay(face) if self.options.explain == "attention" else None,
        )

    def _evidence(self, face: ReadFace) -> Evidence:
        index = self._explained_class(face)
        contract = self.classifier.contract
        return Evidence(
            class_=contract.labels[index],
            grid=_grid(face.reading.evidence[index], LOGIT_DECIMALS),
            bias=round(contract.bias[index], LOGIT_DECIMALS),
            logit=round(float(face.reading.logits[index]), LOGIT_DECIMALS),
            overlay=self._overlay(face),
        )

    def _overlay(self, face: ReadFace) -> str | None:
        if self.options.heatmap == "none":
            return None
        grid, signed = self._map(face)
        png = encode_image(heat_overlay(face.found.crop, grid, signed=signed), "image/png")
        return f"data:image/png;base64,{pybase64.b64encode_as_string(png)}"

    def _annotation(self, face: ReadFace) -> FaceAnnotation:
        expression = self._expression(face)
        heat, signed = self._map(face)
        return FaceAnnotation(
            box=face.found.face.box,
            landmarks=face.found.face.landmarks,
            label=expression.label,
            confidence=expression.confidence,
            heat=heat,
            crop_from_image=self.classifier.transform(face.found.face),
            crop_size=self.classifier.contract.input_size,
            signed=signed,
        )

    def _map(self, face: ReadFace) -> tuple[NDArray[np.float32], bool]:
        """The chosen map [7,7] float32, and whether it has a sign."""
        if self.options.explain == "attention":
            return face.reading.attention, False
        return face.reading.evidence[self._explained_class(face)], True

    def _explained_class(self, face: ReadFace) -> int:
        if self.options.class_ is None:
            return int(face.reading.probabilities.argmax())
        return self.classifier.contract.labels.index(self.options.class_)


def _notes(recognition: Recognition) -> list[str]:
    notes = []
    image = recognition.image
    if image.frames > 1:
        notes.append(f"The {image.format} file has {image.frames} frames; the first was read.")
    left_out = recognition.faces_found - len(recognition.faces)
    if left_out:
        notes.append(f"{left_out} smaller faces were found and not read (max_faces).")
    return notes


# In float64, where a rounded number has few digits; tolist() gives plain floats.
def _row(values: NDArray[np.floating], decimals: int) -> list[float]:
    row: list[float] = np.round(values.astype(np.float64), decimals).tolist()
    return row


def _grid(values: NDArray[np.floating], decimals: int) -> list[list[float]]:
    grid: list[list[float]] = np.round(values.astype(np.float64), decimals).tolist()
    return grid
