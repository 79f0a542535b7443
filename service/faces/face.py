"""A face in an image, and where it is."""

from __future__ import annotations

import math
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


def middle(face: Face) -> tuple[float, float]:
    """x, y of its box's middle."""
    x1, y1, x2, y2 = face.box.tolist()
    return (x1 + x2) / 2, (y1 + y2) / 2
