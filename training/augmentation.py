"""Augmentation of aligned crops: one affine for all geometry, then photometric changes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from service.faces.alignment import compose
from training.turning import Turn

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Augmentation:
    """How far a training crop may differ from the aligned one; probabilities are 0..1."""

    flip: float = 0.5
    """Probability of a mirrored crop."""
    rotation_degrees: float = 12.0
    """Largest rotation either way."""
    scale: float = 0.15
    """Largest relative change of size; each axis gets half of it on its own (mild yaw, pitch)."""
    shift: float = 0.05
    """Largest shift as a share of the crop's side: what landmark noise does."""
    brightness: float = 0.25
    """Largest relative change of contrast, and of brightness in shares of 128."""
    blur: float = 0.15
    """Probability of a Gaussian blur or of a round trip through a smaller picture."""
    erase: float = 0.3
    """Probability of one grey rectangle of up to a third of the side."""
    grey: float = 0.0
    """Probability of losing colour (for data sets in colour)."""
    turn_degrees: float = 30.0
    """Every other head is turned by up to so much, mostly to a side (see `turning`)."""


NO_AUGMENTATION = Augmentation(0, 0, 0, 0, 0, 0, 0, 0, 0)
# Directions of turns, in degrees from the horizontal: one standard deviation.
TURN_SLANT = 30.0


def sample_affine(augmentation: Augmentation, size: int, rng: np.random.Generator) -> Float64:
    """A random affine [2,3] from the aligned crop to the augmented one, in pixels."""
    angle = np.radians(rng.uniform(-1, 1) * augmentation.rotation_degrees)
    zoom = 1 + rng.uniform(-1, 1) * augmentation.scale
    stretch = 1 + rng.uniform(-1, 1, 2) * augmentation.scale / 2
    shift = rng.uniform(-1, 1, 2) * augmentation.shift * size
    cos, sin = np.cos(angle), np.sin(angle)
    linear = zoom * np.array([[cos, -sin], [sin, cos]]) * stretch
    if rng.random() < augmentation.flip:
        linear[:, 0] *= -1
    centre = (size - 1) / 2
    return np.column_stack((linear, centre + shift - linear @ (centre, centre)))


def sample_turn(augmentation: Augmentation, rng: np.random.Generator) -> Turn | None:
    """A random turn of the head, or none."""
    if not augmentation.turn_degrees or rng.random() < 0.5:
        return None
    angle = rng.uniform(-1, 1) * augmentation.turn_degrees
    return Turn(np.radians(angle), np.radians(rng.normal() * TURN_SLANT))


def turn_grid(grid: Float32, origin: Float32) -> Float32:
    """Move a map [G,G] over the crop as `origin` [S,S,2] (of `turning.sources`) moves pixels."""
    cells = grid.shape[0]
    step = origin.shape[0] / cells
    middles = cv2.resize(origin, (cells, cells), interpolation=cv2.INTER_AREA)
    x, y = np.moveaxis((middles + 0.5) / step - 0.5, -1, 0).astype(np.float32)
    moved = cv2.remap(grid, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.float32)


def move_grid(grid: Float32, affine: Float64, size: int) -> Float32:
    """Move a map [G,G] over the crop as `affine` [2,3] moves the crop's pixels.

    Cell (i, j) covers size/G pixels a side; what comes in from outside repeats the border.
    """
    cells = grid.shape[0]
    step = size / cells
    # Pixel of a cell's centre: x = g * step + (step - 1) / 2.
    to_pixels = np.array([[step, 0, (step - 1) / 2], [0, step, (step - 1) / 2]])
    to_cells = cv2.invertAffineTransform(to_pixels)
    matrix = compose(to_cells, compose(affine, to_pixels))
    moved = cv2.warpAffine(
        grid, matrix, (cells, cells), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(moved, np.float32)


def photometric(crop: UInt8, augmentation: Augmentation, rng: np.random.Generator) -> UInt8:
    """Blur, brightness, contrast, loss of colour and erasing on a crop [S,S,3] uint8 RGB."""
    size = crop.shape[0]
    if rng.random() < augmentation.blur:
        crop = _soften(crop, rng)
    if augmentation.brightness:
        gain = 1 + rng.uniform(-1, 1) * augmentation.brightness
        offset = rng.uniform(-1, 1) * augmentation.brightness * 128
        shifted = (crop.astype(np.float32) - 128) * gain + 128 + offset
        crop = np.clip(shifted, 0, 255).astype(np.uint8)
    if rng.random() < augmentation.grey:
        grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
        crop = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)
    if rng.random() < augmentation.erase:
        height, width = rng.integers(size // 10, size // 3, 2)
        top, left = rng.integers(0, size - height), rng.integers(0, size - width)
        crop = crop.copy()
        crop[top : top + height, left : left + width] = rng.integers(0, 256)
    return crop


def _soften(crop: UInt8, rng: np.random.Generator) -> UInt8:
    size = crop.shape[0]
    if rng.random() < 0.5:
        return np.asarray(cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.5, 2.0)), np.uint8)
    small = int(size * rng.uniform(0.25, 0.6))
    shrunk = cv2.resize(crop, (small, small), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(shrunk, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)
