"""Heads turned out of the image plane: a face's crop as it would look from further to one side."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from service.faces.alignment import ARCFACE_TEMPLATE, compose, similarity_transform

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Depth of a face over a crop of 112 pixels: a paraboloid around the nose, wider than its outline
# so that no turn folds it over, and the nose. Eyes lie 15 pixels (27 mm) behind the nose's tip.
CENTRE = np.array((56.0, 72.0))
HALF_WIDTH, HALF_HEIGHT, DEPTH = 50.0, 66.0, 46.0
NOSE_HEIGHT, NOSE_WIDTH = 9.0, 10.0
# Further, the nose of this face would fold over its cheek.
MAX_TURN_DEGREES = 33.0
# The map is smooth: it is solved at every fourth pixel, in so many of Newton's steps.
STRIDE, STEPS = 4, 6


@dataclass(frozen=True)
class Turn:
    """A rotation of the head."""

    angle: float
    """Radians, at most MAX_TURN_DEGREES either way."""
    direction: float
    """Radians, of the way that the nose goes in the image: 0 to the right, pi/2 down."""


def sources(turn: Turn, affine: Float64, size: int) -> Float32:
    """[size,size,2] x, y in the aligned crop from which each pixel of the new crop comes.

    The new crop is the turned face, aligned anew by its five landmarks as the service would align
    it, then moved by `affine` [2,3]. Orthographic; what the turn hides or brings to light is
    stretched from what is there.
    """
    scale = size / 112
    cells = -(-size // STRIDE) + 1
    steps = np.arange(cells) * STRIDE
    pixels = np.stack(np.meshgrid(steps, steps), -1).astype(np.float64)
    landmarks = np.array(ARCFACE_TEMPLATE)
    aligned = similarity_transform(_turned(landmarks, turn), landmarks)
    placed = compose(affine, np.diag((scale, scale, 1.0))[:2] @ np.vstack((aligned, (0, 0, 1))))
    back = cv2.invertAffineTransform(placed)
    coarse = _before(pixels @ back[:, :2].T + back[:, 2], turn) * scale
    # Pixel (i, j) of the coarse map is pixel (STRIDE i, STRIDE j) of the crop.
    where = (np.arange(size) / STRIDE).astype(np.float32)
    columns, rows = np.meshgrid(where, where)
    fine = cv2.remap(coarse.astype(np.float32), columns, rows, cv2.INTER_LINEAR)
    return np.asarray(fine, np.float32)


def _depth(x: Float64, y: Float64) -> tuple[Float64, Float64, Float64]:
    """Height over the paraboloid's top at x, y from CENTRE, and its two slopes."""
    nose = NOSE_HEIGHT * np.exp(-(x**2 + y**2) / (2 * NOSE_WIDTH**2))
    height = nose - DEPTH / 2 * ((x / HALF_WIDTH) ** 2 + (y / HALF_HEIGHT) ** 2)
    slope_x = -nose * x / NOSE_WIDTH**2 - DEPTH * x / HALF_WIDTH**2
    slope_y = -nose * y / NOSE_WIDTH**2 - DEPTH * y / HALF_HEIGHT**2
    return height, slope_x, slope_y


def _turned(points: Float64, turn: Turn) -> Float64:
    """Where points [...,2] of the crop go."""
    way = np.array((np.cos(turn.direction), np.sin(turn.direction)))
    offset = points - CENTRE
    along = offset @ way
    height, _, _ = _depth(offset[..., 0], offset[..., 1])
    moved = along * np.cos(turn.angle) + height * np.sin(turn.angle)
    return np.asarray(points + (moved - along)[..., None] * way, np.float64)


def _before(points: Float64, turn: Turn) -> Float64:
    """The inverse of `_turned`."""
    way = np.array((np.cos(turn.direction), np.sin(turn.direction)))
    goal = (points - CENTRE) @ way
    rest = points - CENTRE - goal[..., None] * way
    cos, sin = np.cos(turn.angle), np.sin(turn.angle)
    along = goal.copy()
    for _ in range(STEPS):
        x, y = rest[..., 0] + along * way[0], rest[..., 1] + along * way[1]
        height, slope_x, slope_y = _depth(x, y)
        slope = cos + sin * (slope_x * way[0] + slope_y * way[1])
        along -= (along * cos + height * sin - goal) / np.maximum(slope, 0.2)
    return np.asarray(CENTRE + rest + along[..., None] * way, np.float64)
