"""Draws faces on a photo: box, landmarks, label and the heat map where the network looked.

Sizes follow the picture, so that a 48-pixel thumbnail and a 33-megapixel photo, each seen whole,
look alike; they are bounded by the face, so that a small face is not buried. Labels go where they
cover no face and no other label, if there is such a place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from service.heatmap import normalise_grid, paint_heat, smooth_heat

_ACCENT = (40, 235, 165)
_DARK = (12, 20, 24)
_WHITE = (255, 255, 255)
_PLATE_OPACITY = 0.72
_SOFT_EDGE = 0.14  # of the crop's side
_STRIP_PIXELS = 1 << 20
_FRACTION_BITS = 4  # OpenCV takes centres and radii in sixteenths of a pixel
_SMALLEST_TEXT, _SMALLEST_FULL_TEXT = 7, 9  # pixels


@dataclass(frozen=True, eq=False, kw_only=True)
class FaceAnnotation:
    """What to draw for one face, in pixels of the image.

    Attributes:
        box: [4] x1, y1, x2, y2; may reach over the border.
        landmarks: [5, 2] x, y.
        label: name of the expression.
        confidence: 0..1.
        heat: [7, 7] float32, attention in 0..1 or signed evidence; None for no heat map.
        crop_from_image: [2, 3], takes a point of the image to the square crop ``heat`` lies over.
        crop_size: side of that crop in its own pixels.
        signed: whether ``heat`` is evidence.
    """

    box: NDArray[np.floating]
    landmarks: NDArray[np.floating]
    label: str
    confidence: float
    heat: NDArray[np.float32] | None
    crop_from_image: NDArray[np.floating]
    crop_size: int
    signed: bool


class _Rectangle(NamedTuple):
    """Whole pixels; the right and bottom edges are not part of it."""

    left: int
    top: int
    right: int
    bottom: int

    def overlap(self, other: _Rectangle) -> int:
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0, width) * max(0, height)


def draw_faces(
    image: NDArray[np.uint8], annotations: Sequence[FaceAnnotation]
) -> NDArray[np.uint8]:
    """Draw every annotation on a copy of ``image``, [H, W, 3] uint8 RGB, of the same size."""
    canvas = image.copy()
    for face in annotations:
        _draw_heat(canvas, face)
    for face in annotations:
        _draw_box(canvas, face)
        _draw_landmarks(canvas, face)
    _draw_labels(canvas, annotations)
    return canvas


# --- heat map ----------------------------------------------------------------------------------


def _draw_heat(canvas: NDArray[np.uint8], face: FaceAnnotation) -> None:
    """Warp the heat map back onto the photo, strip by strip: a face may fill 33 megapixels."""
    if face.heat is None:
        return
    area = _heat_area(canvas, face)
    if area.right <= area.left or area.bottom <= area.top:
        return
    heat = smooth_heat(normalise_grid(face.heat, signed=face.signed), face.crop_size)
    weight = _soft_square(face.crop_size)
    rows = max(1, _STRIP_PIXELS // (area.right - area.left))
    for top in range(area.top, area.bottom, rows):
        strip = canvas[top : min(top + rows, area.bottom), area.left : area.right]
        from_strip = np.asarray(face.crop_from_image, np.float64).copy()
        from_strip[:, 2] += from_strip[:, :2] @ (area.left, top)
        strip[:] = paint_heat(
            np.ascontiguousarray(strip),
            _warp(heat, from_strip, strip.shape, cv2.BORDER_REPLICATE),
            _warp(weight, from_strip, strip.shape, cv2.BORDER_CONSTANT),
            signed=face.signed,
        )


def _heat_area(canvas: NDArray[np.uint8], face: FaceAnnotation) -> _Rectangle:
    """The part of the image that the crop's square covers."""
    image_from_crop = cv2.invertAffineTransform(np.asarray(face.crop_from_image, np.float64))
    low, high = -0.5, face.crop_size - 0.5
    corners = np.array([[low, low, 1], [high, low, 1], [high, high, 1], [low, high, 1]])
    points = corners @ image_from_crop.T
    limits = (canvas.shape[1], canvas.shape[0])
    left, top = np.clip(np.floor(points.min(axis=0)), 0, limits).astype(int).tolist()
    right, bottom = np.clip(np.ceil(points.max(axis=0)) + 1, 0, limits).astype(int).tolist()
    return _Rectangle(left, top, right, bottom)


def _soft_square(size: int) -> NDArray[np.float32]:
    """[size, size] float32: 1 inside, falling smoothly to 0 at the four edges."""
    distance = np.minimum(np.arange(size) + 0.5, size - 0.5 - np.arange(size)) / (size * _SOFT_EDGE)
    ramp = np.clip(distance, 0.0, 1.0)
    edge = ramp * ramp * (3.0 - 2.0 * ramp)
    return np.outer(edge, edge).astype(np.float32)


def _warp(
    source: NDArray[np.float32],
    source_from_target: NDArray[np.float64],
    shape: Sequence[int],
    border: int,
) -> NDArray[np.float32]:
    warped = cv2.warpAffine(
        source,
        source_from_target,
        (shape[1], shape[0]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=border,
    )
    return np.asarray(warped, np.float32)


# --- box and landmarks -------------------------------------------------------------------------


def _face_side(face: FaceAnnotation) -> float:
    return float(min(face.box[2] - face.box[0], face.box[3] - face.box[1]))


def _line_width(canvas: NDArray[np.uint8], face: FaceAnnotation) -> int:
    by_image: float = max(canvas.shape[:2]) / 300
    return max(1, round(min(by_image, _face_side(face) / 40)))


def _box_in_image(canvas: NDArray[np.uint8], face: FaceAnnotation) -> _Rectangle:
    height, width = canvas.shape[:2]
    left, right = np.clip(np.rint(face.box[[0, 2]]), 0, width).astype(int).tolist()
    top, bottom = np.clip(np.rint(face.box[[1, 3]]), 0, height).astype(int).tolist()
    return _Rectangle(left, top, right, bottom)


def _draw_box(canvas: NDArray[np.uint8], face: FaceAnnotation) -> None:
    """A frame whose outer edge is the box, or the border of the image where the box leaves it."""
    width = _line_width(canvas, face)
    box = _box_in_image(canvas, face)
    inside = canvas[box.top : box.bottom, box.left : box.right]
    if width > 2:  # a dark rim keeps the line visible on a bright ground
        _draw_frame(inside, width, _DARK)
        rim = max(1, width // 5)
        inside = inside[rim:-rim, rim:-rim]
        width -= 2 * rim
    _draw_frame(inside, width, _ACCENT)


def _draw_frame(area: NDArray[np.uint8], width: int, colour: tuple[int, int, int]) -> None:
    area[:width] = colour
    area[-width:] = colour
    area[:, :width] = colour
    area[:, -width:] = colour


def _draw_landmarks(canvas: NDArray[np.uint8], face: FaceAnnotation) -> None:
    """White dots, rimmed where they are large enough to have a rim: visible on any heat."""
    radius = _line_width(canvas, face)
    one = 1 << _FRACTION_BITS
    centres = np.rint(face.landmarks * one).astype(int).tolist()
    for centre in centres:
        if radius > 1:
            rimmed = one * (radius + max(1, radius // 3))
            cv2.circle(canvas, centre, rimmed, _DARK, -1, cv2.LINE_AA, _FRACTION_BITS)
        cv2.circle(canvas, centre, one * radius, _WHITE, -1, cv2.LINE_AA, _FRACTION_BITS)


# --- labels ------------------------------------------------------------------------------------


def _draw_labels(canvas: NDArray[np.uint8], annotations: Sequence[FaceAnnotation]) -> None:
    boxes = [_box_in_image(canvas, face) for face in annotations]
    features = [_features(face) for face in annotations]
    placed: list[_Rectangle] = []
    for face, box in zip(annotations, boxes, strict=True):
        text = _label_mask(canvas, face)
        # Eyes and mouth, and labels already there, weigh more than the rest of a face.
        obstacles = boxes + 3 * (features + placed)
        places = _label_places(canvas, box, text.shape, gap=_line_width(canvas, face))
        place = min(places, key=lambda spot: _hidden(spot, obstacles))
        _draw_plate(canvas, place, text)
        placed.append(place)


def _hidden(place: _Rectangle, obstacles: Sequence[_Rectangle]) -> int:
    return sum(place.overlap(obstacle) for obstacle in obstacles)


def _features(face: FaceAnnotation) -> _Rectangle:
    """The smallest rectangle around the landmarks."""
    left, top = np.floor(face.landmarks.min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(face.landmarks.max(axis=0)).astype(int).tolist()
    return _Rectangle(left, top, right, bottom)


def _label_places(
    canvas: NDArray[np.uint8], box: _Rectangle, shape: Sequence[int], *, gap: int
) -> list[_Rectangle]:
    """Where a label of ``shape`` may go, best first, each moved to lie inside the image."""
    height, width = shape
    corners = (
        (box.left, box.top - gap - height),
        (box.left, box.bottom + gap),
        (box.right - width, box.top - gap - height),
        (box.right - width, box.bottom + gap),
        (box.right + gap, box.top),
        (box.left - gap - width, box.top),
        (box.right + gap, box.bottom - height),
        (box.left - gap - width, box.bottom - height),
    )
    room_x, room_y = canvas.shape[1] - width, canvas.shape[0] - height
    inside = ((min(max(0, x), room_x), min(max(0, y), room_y)) for x, y in corners)
    return [_Rectangle(x, y, x + width, y + height) for x, y in inside]


def _label_mask(canvas: NDArray[np.uint8], face: FaceAnnotation) -> NDArray[np.uint8]:
    """[h, w] uint8: the text with its padding, white on black, no larger than the image."""
    height, width = canvas.shape[:2]
    full = f"{face.label} {face.confidence:.0%}"
    text, size = _fit_text(full, face.label, _text_size(canvas, face), width)
    font, pad = _font(size), _padding(size)
    _, ink_top, _, ink_bottom = font.getbbox("Ágp|")  # the same height for every label
    shape = (math.ceil(font.getlength(text)) + 2 * pad, math.ceil(ink_bottom - ink_top) + 2 * pad)
    mask = Image.new("L", shape)
    ImageDraw.Draw(mask).text((pad, pad - ink_top), text, fill=255, font=font)
    return np.asarray(mask)[:height, :width]


def _text_size(canvas: NDArray[np.uint8], face: FaceAnnotation) -> int:
    """Pixels: a fifth of the face, but legible where the whole image is seen on a screen."""
    side: float = max(canvas.shape[:2])
    smallest = max(side / 90, min(max(side / 20, 9), 11))
    largest = max(side / 40, min(side / 5, 12))
    return round(min(max(_face_side(face) / 5, smallest), largest))


def _padding(text_size: int) -> int:
    return max(1, text_size // 5)


def _fit_text(full: str, short: str, size: int, room: int) -> tuple[str, int]:
    """The most telling text that fits ``room`` pixels: smaller first, then without the number."""
    for text, smallest in ((full, _SMALLEST_FULL_TEXT), (short, _SMALLEST_TEXT)):
        for points in range(max(size, smallest), smallest - 1, -1):
            if _font(points).getlength(text) + 2 * _padding(points) <= room:
                return text, points
    return short, _SMALLEST_TEXT


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType")
    return font


def _draw_plate(canvas: NDArray[np.uint8], place: _Rectangle, text: NDArray[np.uint8]) -> None:
    """Darken the place and write on it: some of what it covers stays visible."""
    area = canvas[place.top : place.bottom, place.left : place.right]
    ground = area * np.float32(1.0 - _PLATE_OPACITY) + np.float32(_PLATE_OPACITY) * np.array(
        _DARK, np.float32
    )
    ink = text[..., np.newaxis] * np.float32(1.0 / 255.0)
    area[:] = np.rint(ground + (np.array(_WHITE, np.float32) - ground) * ink)
