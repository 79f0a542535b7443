"""RetinaFace (Deng et al., CVPR 2020): placing an image on a canvas, inference, decoding, NMS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from service.errors import InferenceError, ModelContractError
from service.runtime import LoadedModel, SessionSettings, load_model

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

# What the network was trained with: BGR minus these means, no scaling.
BGR_MEAN = (104.0, 117.0, 123.0)
STRIDES = (8, 16, 32)
# Two square anchors a cell, side in canvas pixels, for each stride.
ANCHOR_SIDES = ((16, 32), (64, 128), (256, 512))
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
NMS_IOU = 0.4

# (height, width), multiples of the largest stride. Few, because ONNX Runtime plans memory anew
# for each new shape, and because only images on canvases of one size share a batch.
CANVAS_SIZES = (
    (320, 320),
    (480, 640),
    (640, 480),
    (640, 640),
    (960, 1280),
    (1280, 960),
    (1280, 1280),
    (1088, 1920),
    (1440, 1920),
    (1920, 1440),
)
LONG_SIDES = (320, 640, 1280)
# Long side of the finer look that follows a first look at each of these.
FINER_SIDES = {320: 640, 640: 1280, 1280: 1920}
# A finer look is worth its time only where it enlarges by this much.
FINER_GAIN = 1.3
# Tiny pictures are enlarged, but not without end: on 48-pixel faces, landmarks agree best with
# those of the mirrored picture at a scale of 3 (of 2.3 to 6.7 tried).
MAX_ENLARGEMENT = 3.0

# Scores from which a face counts, by its longer side on the canvas: small faces score low, while
# what scores 0.5 to 0.7 and is large was a texture or a cat in the photos tried.
SMALL_FACE = 64
SMALL_FACE_MIN_SCORE = 0.5
MIN_SCORE = 0.7
# The largest canvas is joined by a look at the whole image on the smallest one, a quarter of its
# size: large faces are seen better there (beyond 512 pixels they outgrow the anchors and are seen
# in pieces). The two ranges overlap a little.
LARGEST_FACE = 224
COARSE_SMALLEST_FACE = 45
# Long sides of the image, in pixels of the smallest canvas, where the first round found nothing.
SECOND_LOOK_SIDES = (200, 320, 112)
SECOND_LOOK_MIN_SCORE = 0.65
# A picture this small is mostly one face cut out, so less is asked of it.
SMALL_PICTURE = 256
SMALL_PICTURE_MIN_SCORE = 0.4


@dataclass(frozen=True, eq=False)
class Face:
    """One detected face, in pixels of the upright image; left and right are the viewer's."""

    box: Float32
    """[4]: x1, y1, x2, y2, inside the image."""
    landmarks: Float32
    """[5,2]: left eye, right eye, nose, left and right mouth corner; may lie outside the image."""
    score: float
    """0..1."""


@dataclass(frozen=True)
class Look:
    """One way to look at an image: a canvas, and how large the image is drawn on it."""

    canvas: tuple[int, int]
    """(height, width) in pixels."""
    scale: float
    """Canvas pixels per image pixel."""
    min_score: float
    """Scores of faces that are not small count from here, unless the caller names a threshold."""
    sides: tuple[float, float] = (0.0, math.inf)
    """Only faces whose longer side has so many canvas pixels count in this look."""


@dataclass(frozen=True)
class Round:
    """Looks that are taken together, and when."""

    looks: tuple[Look, ...]
    small_below: float = 0.0
    """Taken where no face has been found yet, or one with a longer side below so many pixels."""

    def needed(self, faces: Sequence[Face]) -> bool:
        """Whether to take this round after the rounds before found `faces` (image pixels)."""
        return not faces or min(map(_longer_side, faces)) < self.small_below


@dataclass(frozen=True, eq=False)
class Placement:
    """An image drawn in the middle of a canvas, its border pixels replicated around it."""

    pixels: UInt8
    """[h,w,3] RGB, (h, w) = look.canvas."""
    look: Look
    offset: tuple[int, int]
    """(x, y) of the image's corner on the canvas, pixels."""
    image_size: tuple[int, int]
    """(height, width) of the image, pixels."""


@dataclass(frozen=True, eq=False)
class RawDetections:
    """Network output for one canvas with A anchors."""

    offsets: Float32
    """[A,4] box offsets in units of the anchors."""
    scores: Float32
    """[A] 0..1."""
    landmark_offsets: Float32
    """[A,10]."""


@lru_cache(maxsize=len(CANVAS_SIZES))
def anchors(canvas: tuple[int, int]) -> Float32:
    """Anchor boxes [A,3] float32 (centre x, centre y, side) in canvas pixels, in network order."""
    height, width = canvas
    levels = []
    for stride, sides in zip(STRIDES, ANCHOR_SIDES, strict=True):
        ys, xs = np.mgrid[0 : -(-height // stride), 0 : -(-width // stride)]
        centres = (np.stack((xs, ys), -1).reshape(-1, 1, 2) + 0.5) * stride
        cells = np.empty((len(centres), len(sides), 3), np.float32)
        cells[..., :2] = centres
        cells[..., 2] = sides
        levels.append(cells.reshape(-1, 3))
    return np.concatenate(levels)


def fitting_canvas(height: float, width: float) -> tuple[int, int]:
    """The smallest canvas that holds `height` x `width` pixels, else the best for that shape."""
    fitting = [c for c in CANVAS_SIZES if c[0] >= height - 0.5 and c[1] >= width - 0.5]
    shape = (height, width)
    by_scale = max(CANVAS_SIZES, key=lambda c: min(c[0] / shape[0], c[1] / shape[1]))
    return min(fitting, key=lambda c: c[0] * c[1], default=by_scale)


def plan_rounds(height: int, width: int) -> tuple[Round, ...]:
    """How to look at an image of `height` x `width` pixels.

    The first round is always taken. Where it finds nothing the image may be one big face that
    fills the frame, found once it is drawn at another size. Where all is empty or a face is small,
    a last round looks for small faces on a larger canvas.
    """
    long_side = max(height, width)
    target = next((side for side in LONG_SIDES if side >= long_side), LONG_SIDES[-1])
    fine = _look(height, width, target)
    first = [fine]
    if target == LONG_SIDES[-1]:
        coarse = (COARSE_SMALLEST_FACE, math.inf)
        first = [_small_look(long_side, LONG_SIDES[0], MIN_SCORE, coarse)]
        first.append(replace(fine, sides=(0.0, LARGEST_FACE)))
    rounds = [Round(tuple(first))]
    lowest = SMALL_PICTURE_MIN_SCORE if long_side <= SMALL_PICTURE else SECOND_LOOK_MIN_SCORE
    for side in SECOND_LOOK_SIDES:
        again = _small_look(long_side, side, lowest)
        if again.scale != fine.scale:
            rounds.append(Round((again,)))
    finer = _look(height, width, FINER_SIDES[target])
    if long_side <= SMALL_PICTURE:
        finer = replace(finer, min_score=lowest)
    elif target > LONG_SIDES[0]:
        finer = replace(finer, sides=(0.0, LARGEST_FACE))
    if finer.scale >= fine.scale * FINER_GAIN:
        rounds.append(Round((finer,), small_below=SMALL_FACE / fine.scale))
    return tuple(rounds)


def _look(height: int, width: int, target: int) -> Look:
    """The image with its longer side at `target` canvas pixels, or as near as canvases allow."""
    scale = min(target / max(height, width), MAX_ENLARGEMENT)
    canvas = fitting_canvas(height * scale, width * scale)
    scale = min(scale, canvas[0] / height, canvas[1] / width)
    return Look(canvas, scale, MIN_SCORE)


def _small_look(
    long_side: int, side: int, min_score: float, sides: tuple[float, float] = (0.0, math.inf)
) -> Look:
    """The whole image on the smallest canvas, its longer side at `side` pixels."""
    return Look(CANVAS_SIZES[0], side / long_side, min_score, sides)


def place(image: UInt8, look: Look) -> Placement:
    """Draw `image` [H,W,3] uint8 RGB on the look's canvas, aspect ratio kept."""
    image_size = (image.shape[0], image.shape[1])
    canvas_height, canvas_width = look.canvas
    height = max(1, min(canvas_height, round(image_size[0] * look.scale)))
    width = max(1, min(canvas_width, round(image_size[1] * look.scale)))
    interpolation = cv2.INTER_AREA if look.scale < 1 else cv2.INTER_CUBIC
    if (height, width) != image_size:
        image = cv2.resize(image, (width, height), interpolation=interpolation)  # type: ignore[assignment]
    top, left = (canvas_height - height) // 2, (canvas_width - width) // 2
    pixels = cv2.copyMakeBorder(
        image,
        top,
        canvas_height - height - top,
        left,
        canvas_width - width - left,
        cv2.BORDER_REPLICATE,
    )
    return Placement(np.asarray(pixels, np.uint8), look, (left, top), image_size)


def decode(raw: RawDetections, look: Look, min_score: float | None = None) -> list[Face]:
    """Faces in canvas pixels, after NMS. `min_score` (0..1) overrides the look's thresholds."""
    lowest = min(look.min_score, SMALL_FACE_MIN_SCORE) if min_score is None else min_score
    kept = np.flatnonzero(raw.scores >= lowest)
    # Decoding the few candidates alone: a canvas has up to 67,200 anchors.
    cells = anchors(look.canvas)[kept]
    centre, side = cells[:, :2], cells[:, 2:]
    offsets = raw.offsets[kept]
    centres = centre + offsets[:, :2] * CENTRE_VARIANCE * side
    sizes = side * np.exp(offsets[:, 2:] * SIZE_VARIANCE)
    points = raw.landmark_offsets[kept].reshape(-1, 5, 2) * CENTRE_VARIANCE * side[:, None]
    boxes = np.concatenate((centres - sizes / 2, centres + sizes / 2), 1)
    landmarks = centre[:, None] + points
    scores, longer = raw.scores[kept], sizes.max(1)
    wanted = (longer >= look.sides[0]) & (longer <= look.sides[1])
    if min_score is None:
        wanted &= (longer < SMALL_FACE) | (scores >= look.min_score)
    return suppress(
        [Face(boxes[i], landmarks[i], float(scores[i])) for i in np.flatnonzero(wanted)]
    )


def suppress(faces: Sequence[Face]) -> list[Face]:
    """Non-maximum suppression: of faces that overlap by more than NMS_IOU, the best score."""
    if len(faces) < 2:
        return list(faces)
    corners = np.stack([face.box for face in faces])
    xywh = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1)
    scores = [face.score for face in faces]
    return [faces[i] for i in cv2.dnn.NMSBoxes(xywh.tolist(), scores, 0.0, NMS_IOU)]


def to_image_frame(face: Face, placement: Placement) -> Face | None:
    """A face in canvas pixels -> in image pixels, box cut at the image.

    None where it is centred outside the image or its landmarks are no face (all in one point).
    """
    height, width = placement.image_size
    offset = np.array(placement.offset, np.float32)
    corners = (face.box.reshape(2, 2) - offset) / placement.look.scale
    centre = corners.mean(0)
    if not (0 <= centre[0] < width and 0 <= centre[1] < height):
        return None  # seen in the replicated border
    box = np.clip(corners, 0, (width, height)).reshape(4).astype(np.float32)
    landmarks = ((face.landmarks - offset) / placement.look.scale).astype(np.float32)
    if not np.ptp(landmarks, axis=0).max() > 0:
        return None
    return Face(box, landmarks, face.score)


class FaceDetector:
    """RetinaFace in ONNX Runtime. Every method is thread-safe."""

    canvas_sizes = CANVAS_SIZES

    def __init__(self, model: LoadedModel, source: str = "detector") -> None:
        """Raises ModelContractError where the network is not a RetinaFace of this layout."""
        inputs = [i.name for i in model.session.get_inputs()]
        outputs = [o.name for o in model.session.get_outputs()]
        if inputs != ["input"] or outputs != ["loc", "conf", "landmarks"]:
            raise ModelContractError(
                f"{source}: expected input 'input' and outputs 'loc', 'conf', 'landmarks' "
                f"(RetinaFace); the file has {inputs} and {outputs}"
            )
        self._session = model.session
        self.sha256 = model.sha256
        self.providers = model.providers
        self._require_sound_outputs(source)

    @classmethod
    def load(cls, path: Path, settings: SessionSettings) -> FaceDetector:
        """Raises ModelFileError, ModelContractError or ProviderUnavailableError."""
        return cls(load_model(path, settings), str(path))

    def rounds(self, height: int, width: int) -> tuple[Round, ...]:
        """See `plan_rounds`."""
        return plan_rounds(height, width)

    def place(self, image: UInt8, look: Look) -> Placement:
        """See `place`."""
        return place(image, look)

    def infer(self, placements: Sequence[Placement]) -> list[RawDetections]:
        """Run the network on canvases of one size. Raises InferenceError."""
        canvases = [p.pixels for p in placements]
        batch = cv2.dnn.blobFromImages(canvases, mean=BGR_MEAN, swapRB=True)
        return self._run(np.asarray(batch, np.float32))

    def _run(self, batch: Float32) -> list[RawDetections]:
        try:
            loc, conf, landmarks = self._session.run(None, {"input": batch})
        except Exception as error:  # ORT's exception classes share no public base
            raise InferenceError("the face detector failed") from error
        return [RawDetections(loc[i], conf[i, :, 1], landmarks[i]) for i in range(len(batch))]

    def finish(
        self,
        raws: Sequence[RawDetections],
        placements: Sequence[Placement],
        *,
        earlier: Sequence[Face] = (),
        min_score: float | None = None,
    ) -> list[Face]:
        """The faces of one round of looks and of `earlier` rounds, in image pixels, largest first.

        `min_score` (0..1) overrides the looks' thresholds.
        """
        faces = list(earlier)
        for raw, placement in zip(raws, placements, strict=True):
            seen = (to_image_frame(f, placement) for f in decode(raw, placement.look, min_score))
            faces += [face for face in seen if face is not None]
        if earlier or len(placements) > 1:
            faces = suppress(faces)
        return sorted(faces, key=_area, reverse=True)

    def detect(self, image: UInt8, *, min_score: float | None = None) -> list[Face]:
        """Faces of `image` [H,W,3] uint8 RGB, largest first. Raises InferenceError."""
        faces: list[Face] = []
        for turn in self.rounds(image.shape[0], image.shape[1]):
            if turn.needed(faces):
                placements = [self.place(image, look) for look in turn.looks]
                raws = [self.infer([placement])[0] for placement in placements]
                faces = self.finish(raws, placements, earlier=faces, min_score=min_score)
        return faces

    def _require_sound_outputs(self, source: str) -> None:
        """One run on the smallest canvas: shapes as promised, every number finite."""
        canvas = min(CANVAS_SIZES)
        expected = [(len(anchors(canvas)), values) for values in (4, 2, 10)]
        try:
            outputs = self._session.run(None, {"input": np.zeros((1, 3, *canvas), np.float32)})
        except Exception as error:  # ORT's exception classes share no public base
            reason = str(error).splitlines()[0]
            raise ModelContractError(f"{source}: cannot run on its input ({reason})") from error
        shapes = [values.shape[1:] for values in outputs]
        if shapes != expected:
            raise ModelContractError(
                f"{source}: outputs have shapes {shapes} an image, expected {expected}"
            )
        if not all(np.isfinite(values).all() for values in outputs):
            raise ModelContractError(f"{source}: outputs hold NaN or infinite numbers")

    def warm_up(self) -> None:
        """Run every canvas size once, so that no request pays for a first time."""
        for height, width in CANVAS_SIZES:
            self._run(np.zeros((1, 3, height, width), np.float32))


def _area(face: Face) -> float:
    x1, y1, x2, y2 = face.box
    return float((x2 - x1) * (y2 - y1))


def _longer_side(face: Face) -> float:
    return float((face.box[2:] - face.box[:2]).max())
