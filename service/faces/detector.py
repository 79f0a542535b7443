"""RetinaFace (Deng et al., CVPR 2020): placing an image on a canvas, inference, decoding, NMS.

Which canvases, and in which order, is in service.faces.looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from service.errors import InferenceError, ModelContractError
from service.faces.alignment import warp_crop
from service.faces.face import Face, largest_first, longer_side, middle
from service.faces.looks import (
    CANVAS_SIZES,
    DOUBT_SCORE,
    SMALL_FACE,
    SMALL_FACE_MIN_SCORE,
    SMALL_SIDE,
    SURE_SCORE,
    UNSURE_FACE,
    Found,
    Look,
    Search,
    Turn,
    plan_rounds,
)
from service.faces.refining import refinements
from service.runtime import LoadedModel, SessionSettings, load_model

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
UInt8 = NDArray[np.uint8]

# What the network was trained with: BGR minus these means, no scaling.
BGR_MEAN = (104.0, 117.0, 123.0)
STRIDES = (8, 16, 32)
# Two square anchors a cell, side in canvas pixels, for each stride.
ANCHOR_SIDES = ((16, 32), (64, 128), (256, 512))
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
NMS_IOU = 0.4
# A box that lies so far inside a much larger one is a piece of the same face.
PIECE = 0.6
NOTHING = Found()
# Candidates of one canvas, best scores first: a threshold of 0 would take every anchor for a face.
MAX_CANDIDATES = 1000
# Pixels over which a face's landmarks must spread; less is no face and cannot be aligned.
LEAST_SPREAD = 1e-3


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
    min_score: float | None = None
    """0..1, in place of the look's thresholds."""


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


def place(image: UInt8, look: Look, min_score: float | None = None) -> Placement:
    """Draw `image` [H,W,3] uint8 RGB on the look's canvas, aspect ratio kept.

    `min_score` (0..1) overrides the look's thresholds.
    """
    image_size = (image.shape[0], image.shape[1])
    if look.turn:
        pixels = warp_crop(image, _turning(look), look.canvas[0])
        return Placement(pixels, look, (0, 0), image_size, min_score)
    if look.region is not None:
        x1, y1, x2, y2 = look.region
        image = image[y1:y2, x1:x2]
    size = (image.shape[0], image.shape[1])
    canvas_height, canvas_width = look.canvas
    height = max(1, min(canvas_height, round(size[0] * look.scale)))
    width = max(1, min(canvas_width, round(size[1] * look.scale)))
    image = _resized(image, height, width)
    top, left = (canvas_height - height) // 2, (canvas_width - width) // 2
    below, right = canvas_height - height - top, canvas_width - width - left
    pixels = image
    if below or right:  # the larger halves of what is left over
        border = cv2.BORDER_REPLICATE
        pixels = np.asarray(cv2.copyMakeBorder(image, top, below, left, right, border), np.uint8)
    return Placement(pixels, look, (left, top), image_size, min_score)


def _turning(look: Look) -> Float64:
    """The affine [2,3] from image pixels to those of a turned look's square canvas."""
    assert look.region is not None
    x1, y1, x2, y2 = look.region
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    matrix = np.asarray(cv2.getRotationMatrix2D((x, y), look.turn, look.scale), np.float64)
    matrix[:, 2] += look.canvas[0] / 2 - np.array((x, y))
    return matrix


def network_input(canvases: Sequence[UInt8]) -> Float32:
    """What the network takes, [N,3,H,W] BGR minus means, of N canvases [H,W,3] uint8 RGB."""
    return np.asarray(cv2.dnn.blobFromImages(canvases, mean=BGR_MEAN, swapRB=True), np.float32)


def _resized(image: UInt8, height: int, width: int) -> UInt8:
    """`image` at this size; photos are shrunk by averages and one bilinear step."""
    if max(image.shape[:2]) <= SMALL_SIDE:
        shrinks = cv2.INTER_AREA
    else:
        shrinks = cv2.INTER_LINEAR
        image = _halved(image, height, width)
    if image.shape[:2] == (height, width):
        return image
    interpolation = shrinks if height < image.shape[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)


def _halved(image: UInt8, height: int, width: int) -> UInt8:
    """`image` at a half, a quarter ... of its size, as long as that is no smaller."""
    # Averages of four pixels, again and again, are ten times faster than OpenCV's averages over
    # areas that are no whole pixels.
    while image.shape[0] >= 2 * height and image.shape[1] >= 2 * width:
        half = (image.shape[1] // 2, image.shape[0] // 2)
        # An odd last row or column is left out: in all, less than one pixel of the canvas.
        even = image[: 2 * half[1], : 2 * half[0]]
        image = np.asarray(cv2.resize(even, half, interpolation=cv2.INTER_AREA), np.uint8)
    return image


def decode(raw: RawDetections, look: Look, min_score: float | None = None) -> Found:
    """Faces and doubts in canvas pixels, after NMS. `min_score` (0..1) overrides thresholds."""
    lowest = min(look.min_score, SMALL_FACE_MIN_SCORE) if min_score is None else min_score
    doubtful = math.inf if look.doubt_score is None else look.doubt_score
    seen = _Candidates.of(raw, look.canvas, min(lowest, doubtful)).between(*look.sides)
    small = seen.longer < SMALL_FACE
    wanted = seen.scores >= lowest
    if min_score is None:
        wanted &= small | (seen.scores >= look.min_score)
    faces = seen.best(wanted)
    if look.doubt_score is None:
        return Found(tuple(faces))
    unsure = [f for f in faces if doubtful <= f.score < SURE_SCORE and longer_side(f) < UNSURE_FACE]
    low = (small | (seen.scores >= DOUBT_SCORE)) & (seen.scores >= doubtful) & ~wanted
    others = seen.best(low & ~seen.inside(faces)) if low.any() else []
    return Found(tuple(faces), (*unsure, *others))


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Those of the anchors whose score may count, N of them."""

    cells: Float32
    """[N,3], see `anchors`."""
    boxes: Float32
    """[N,4] canvas pixels."""
    longer: Float32
    """[N] the boxes' longer sides."""
    landmark_offsets: Float32
    """[N,10]."""
    scores: Float32
    """[N]."""

    @classmethod
    def of(cls, raw: RawDetections, canvas: tuple[int, int], lowest: float) -> _Candidates:
        # Decoding the few candidates alone: a canvas has up to 16,800 anchors. By take(), which has
        # half the overhead of an index that is an array.
        kept = (raw.scores >= lowest).nonzero()[0]
        if len(kept) > MAX_CANDIDATES:
            best = np.argpartition(raw.scores[kept], -MAX_CANDIDATES)[-MAX_CANDIDATES:]
            kept = np.sort(kept[best])
        cells, offsets = anchors(canvas).take(kept, 0), raw.offsets.take(kept, 0)
        side = cells[:, 2:]
        centres = cells[:, :2] + offsets[:, :2] * CENTRE_VARIANCE * side
        sizes = side * np.exp(offsets[:, 2:] * SIZE_VARIANCE)
        halves = sizes / 2
        boxes = np.concatenate((centres - halves, centres + halves), 1)
        longer = np.maximum(sizes[:, 0], sizes[:, 1])
        return cls(cells, boxes, longer, raw.landmark_offsets.take(kept, 0), raw.scores.take(kept))

    def between(self, least: float, most: float) -> _Candidates:
        """Those whose longer side has so many pixels; one that is no number has not."""
        kept = (self.longer >= least) & (self.longer <= most)
        if kept.all():
            return self
        return _Candidates(*(values[kept] for values in vars(self).values()))

    def best(self, chosen: NDArray[np.bool_]) -> list[Face]:
        """Of these, the ones that no better one overlaps (`suppress`)."""
        places = chosen.nonzero()[0]
        if not len(places):
            return []
        boxes, scores = self.boxes.take(places, 0), self.scores.take(places)
        left = _unsuppressed(boxes, scores)
        places = places.take(left)
        cells = self.cells.take(places, 0)[:, None]
        offsets = self.landmark_offsets.take(places, 0).reshape(-1, 5, 2)
        points = cells[..., :2] + offsets * CENTRE_VARIANCE * cells[..., 2:]
        return [
            Face(boxes[index], landmarks, float(scores[index]))
            for index, landmarks in zip(left, points, strict=True)
        ]

    def inside(self, faces: Sequence[Face]) -> NDArray[np.bool_]:
        """[N] whose middle is in the box of one of `faces`."""
        middles = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        covered = np.zeros(len(middles), dtype=bool)
        for face in faces:
            covered |= ((middles >= face.box[:2]) & (middles <= face.box[2:])).all(1)
        return covered


def suppress(faces: Sequence[Face]) -> list[Face]:
    """Non-maximum suppression: of faces that overlap by more than NMS_IOU, the best score."""
    if len(faces) < 2:
        return list(faces)
    boxes = np.stack([face.box for face in faces])
    return [faces[i] for i in _unsuppressed(boxes, np.array([face.score for face in faces]))]


def _unsuppressed(boxes: Float32, scores: NDArray[np.floating]) -> Sequence[int]:
    """Which of N boxes [N,4] with scores [N] NMS leaves, the best score first."""
    if len(boxes) < 2:
        return range(len(boxes))
    xywh = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)
    return list(cv2.dnn.NMSBoxes(xywh.tolist(), scores.tolist(), 0.0, NMS_IOU))


def merge(earlier: Found, looks: Sequence[Found]) -> Found:
    """What one round of looks and the rounds before it have found, in image pixels."""
    seen = [face for found in looks for face in found.faces]
    # Where a photo is drawn small, half a face may come first.
    known = _without_pieces(earlier.faces, seen, of_stronger=True)
    faces = [*known, *_without_pieces(seen, known)]
    if known or len(looks) > 1:
        faces = suppress(faces)
    doubts = earlier.doubts
    if not all(found.doubts is None for found in looks):
        told = [doubt for found in looks for doubt in found.doubts or ()]
        doubts = tuple(doubt for doubt in told if not _lies_on(doubt, earlier.faces))
    return Found(tuple(largest_first(faces)), doubts)


def _lies_on(doubt: Face, faces: Iterable[Face]) -> bool:
    """Whether the middle of `doubt` is in the box of one of these."""
    x, y = middle(doubt)
    boxes = (face.box.tolist() for face in faces)
    return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)


def _without_pieces(
    faces: Sequence[Face], known: Sequence[Face], *, of_stronger: bool = False
) -> list[Face]:
    """`faces` but for parts of larger ones: finer looks see an eye or half a face in one.

    `of_stronger`: parts of those alone that score more than they.
    """
    if not faces or not known:
        return list(faces)
    boxes, large = (np.stack([face.box for face in some]) for some in (faces, known))
    low = np.maximum(boxes[:, None, :2], large[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], large[None, :, 2:])
    shared = (high - low).clip(0).prod(2)
    own, others = ((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, large))
    inside = shared > PIECE * own[:, None]
    piece = inside & (shared <= NMS_IOU * (others + own[:, None] - shared))
    if of_stronger:
        scores, strengths = (np.array([face.score for face in some]) for some in (faces, known))
        piece &= strengths > scores[:, None]
    return [face for face, part in zip(faces, piece.any(1), strict=True) if not part]


def in_image_frame(found: Found, placement: Placement) -> Found:
    """From canvas to image pixels.

    What a region's border cuts is left out, since the tile beside it shows it whole, or it is large
    enough to have been found before; where there is no such tile, it is a doubt.
    """
    faces, cut = _moved(found.faces, placement)
    if found.doubts is None:
        return Found(tuple(faces))
    doubts, _ = _moved(found.doubts, placement)
    return Found(tuple(faces), (*doubts, *(cut if placement.look.alone else ())))


def _moved(faces: Iterable[Face], placement: Placement) -> tuple[list[Face], list[Face]]:
    """In image pixels: those that are whole, and those that the region's border cuts."""
    whole: list[Face] = []
    cut: list[Face] = []
    for face in faces:
        corners, landmarks = _points_in_image(face, placement)
        box = _box_in_image(corners, placement)
        if box is not None and _spread(landmarks) > LEAST_SPREAD:
            moved = Face(box, landmarks, face.score, longer_side(face), placement.look.turn)
            (cut if _is_cut(corners, placement) else whole).append(moved)
    return whole, cut


def _spread(points: Float32) -> float:
    """The longer side of the points' [N,2] bounding box; 0 where one is no number."""
    xs, ys = points.T.tolist()
    if not math.isfinite(sum(xs) + sum(ys)):
        return 0.0
    return float(max(max(xs) - min(xs), max(ys) - min(ys)))


def _box_in_image(corners: Float32, placement: Placement) -> Float32 | None:
    """A box's corners [2,2] cut at the image, as [4]; None where its middle lies outside."""
    (x1, y1), (x2, y2) = corners.tolist()
    height, width = placement.image_size
    if not (0 <= (x1 + x2) / 2 < width and 0 <= (y1 + y2) / 2 < height):
        return None  # seen in the replicated border
    return np.array(
        (max(0.0, x1), max(0.0, y1), min(x2, width), min(y2, height)),
        np.float32,
    )


def _points_in_image(face: Face, placement: Placement) -> tuple[Float32, Float32]:
    """The corners [2,2] of its box and its landmarks [5,2], from canvas to image pixels.

    In a turned look the box keeps its sides, and turns only with its middle.
    """
    look, corners = placement.look, face.box.reshape(2, 2)
    if look.turn:
        back = cv2.invertAffineTransform(_turning(look))
        # Points count from a pixel's corner, the matrix from its middle.
        middles = np.concatenate((corners.mean(0)[None], face.landmarks)) - 0.5
        points = np.asarray(middles @ back[:, :2].T + back[:, 2] + 0.5, np.float32)
        corners = points[0] + (corners - corners.mean(0)) / look.scale
        return corners.astype(np.float32), points[1:]
    points = np.concatenate((corners, face.landmarks))
    moved = (points - np.array(placement.offset, np.float32)) / look.scale
    if look.region is not None:
        moved += np.array(look.region[:2], np.float32)
    return moved[:2], moved[2:]


def _is_cut(corners: Float32, placement: Placement) -> bool:
    """Whether a border of the look's region, other than the image's own, goes through a box."""
    if placement.look.region is None or placement.look.turn:
        return False
    height, width = placement.image_size
    x1, y1, x2, y2 = placement.look.region
    low = np.array((x1 or -np.inf, y1 or -np.inf))
    high = np.array((x2 if x2 < width else np.inf, y2 if y2 < height else np.inf))
    return bool((corners[0] < low).any() or (corners[1] > high).any())


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
        self.source = source
        self.description: str = model.session.get_modelmeta().description
        self._require_sound_outputs(source)

    @classmethod
    def load(cls, path: Path, settings: SessionSettings) -> FaceDetector:
        """Raises ModelFileError, ModelContractError or ProviderUnavailableError."""
        return cls(load_model(path, settings), str(path))

    def rounds(self, height: int, width: int, search: Search = "quick") -> tuple[Turn, ...]:
        """See `plan_rounds`."""
        return plan_rounds(height, width, search)

    def place(self, image: UInt8, look: Look, min_score: float | None = None) -> Placement:
        """See `place`."""
        return place(image, look, min_score)

    def find(self, placements: Sequence[Placement]) -> list[Found]:
        """What each of these canvases of one size shows, in image pixels. Raises InferenceError."""
        return [
            in_image_frame(decode(raw, placement.look, placement.min_score), placement)
            for raw, placement in zip(self.infer(placements), placements, strict=True)
        ]

    def infer(self, placements: Sequence[Placement]) -> list[RawDetections]:
        """Run the network on canvases of one size. Raises InferenceError."""
        return self._run(network_input([p.pixels for p in placements]))

    def _run(self, batch: Float32) -> list[RawDetections]:
        try:
            loc, conf, landmarks = self._session.run(None, {"input": batch})
        except Exception as error:  # ORT's exception classes share no public base
            raise InferenceError("the face detector failed") from error
        return [RawDetections(loc[i], conf[i, :, 1], landmarks[i]) for i in range(len(batch))]

    def detect(
        self, image: UInt8, *, min_score: float | None = None, search: Search = "quick"
    ) -> list[Face]:
        """Faces of `image` [H,W,3] uint8 RGB, largest first. Raises InferenceError."""
        found = NOTHING
        height, width = image.shape[:2]
        for turn in self.rounds(height, width, search):
            placements = [self.place(image, look, min_score) for look in turn.wanted(found)]
            if placements:
                found = merge(found, [self.find([placement])[0] for placement in placements])
        steps = refinements(found.faces, height, width)
        closer: list[Found] | None = None  # which starts it
        while True:
            try:
                looks = steps.send(closer)
            except StopIteration as end:
                return list(end.value)
            closer = [self.find([self.place(image, look, min_score)])[0] for look in looks]

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
