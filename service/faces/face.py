"""A face in an image, and where it is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Face:
    """One detected face, in pixels of the upright image; left and right are the viewer's."""

    box: Float32
    """[4]: x1, y1, x2, y2, inside the image."""
    landmarks: Float32
    """[5,2]: left eye, right eye, nose, left and right mouth corner; may lie outside the image."""
    score: float
    """0..1."""
    seen_side: float = math.inf
    """Longer side of the box in pixels of the canvas it was seen on: how fine the landmarks are."""
    turn: float = 0.0
    """Degrees clockwise by which the last look for its landmarks was turned."""

    def within(self, size: tuple[int, int]) -> Face:
        """The same face, its box cut at an image of `size` (height, width)."""
        height, width = size
        limits = np.array((width, height, width, height), np.float32)
        return replace(self, box=np.clip(self.box, 0, limits))

    def scaled(self, factor: float) -> Face:
        """The same face where a pixel of its image is `factor` pixels."""
        if factor == 1:
            return self
        scale = np.float32(factor)
        return replace(self, box=self.box * scale, landmarks=self.landmarks * scale)


def longer_side(face: Face) -> float:
    """Of its box, in the pixels it is given in."""
    x1, y1, x2, y2 = face.box.tolist()
    return float(max(x2 - x1, y2 - y1))


def area(face: Face) -> float:
    """Of its box."""
    x1, y1, x2, y2 = face.box.tolist()
    return float((x2 - x1) * (y2 - y1))


def overlap(one: Face, other: Face) -> float:
    """Intersection over union of the boxes."""
    sides = np.minimum(one.box[2:], other.box[2:]) - np.maximum(one.box[:2], other.box[:2])
    shared = float(sides.clip(0).prod())
    return shared / (area(one) + area(other) - shared)


def largest_first(faces: Iterable[Face]) -> list[Face]:
    """By the area of their boxes."""
    return sorted(faces, key=area, reverse=True)


def lean(face: Face) -> float:
    """Degrees clockwise, -180..180, by which its landmarks lean from upright."""
    (left_eye, right_eye, _, mouth_left, mouth_right) = face.landmarks.tolist()
    across = mouth_left[0] + mouth_right[0] - left_eye[0] - right_eye[0]
    down = mouth_left[1] + mouth_right[1] - left_eye[1] - right_eye[1]
    return math.degrees(math.atan2(-across, down))


def middle(face: Face) -> tuple[float, float]:
    """x, y of its box's middle."""
    x1, y1, x2, y2 = face.box.tolist()
    return (x1 + x2) / 2, (y1 + y2) / 2
