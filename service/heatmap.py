"""A 7x7 grid of attention or evidence, made smooth and laid over pixels.

Attention runs from 0 to 1 on a sequential map (inferno: its lightness grows evenly). Evidence has a
sign: a diverging map, blue against, red in favour, symmetric around 0. Opacity grows with the
magnitude, so what the network did not look at stays the photo it was.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_MOST_OPAQUE = 0.7
# From blue over white to red; opposite colours have about the same lightness.
_DIVERGING_STOPS = ((24, 72, 176), (110, 160, 230), (245, 245, 245), (235, 130, 105), (168, 16, 36))


def heat_overlay(
    crop: NDArray[np.uint8], grid: NDArray[np.float32], *, signed: bool
) -> NDArray[np.uint8]:
    """Blend a grid over the crop it was computed from.

    Args:
        crop: [S, S, 3] uint8 RGB.
        grid: [7, 7] float32 over the whole crop; attention in 0..1, or signed evidence in logits.
        signed: whether ``grid`` is evidence.

    Returns: a new [S, S, 3] uint8 RGB.
    """
    heat = smooth_heat(normalise_grid(grid, signed=signed), crop.shape[0])
    return paint_heat(crop, heat, np.ones_like(heat), signed=signed)


def normalise_grid(grid: NDArray[np.float32], *, signed: bool) -> NDArray[np.float32]:
    """Attention clipped to 0..1, or evidence divided by its largest magnitude: -1..1."""
    finite = np.nan_to_num(grid.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if not signed:
        return np.clip(finite, 0.0, 1.0)
    peak = float(np.abs(finite).max(initial=0.0))
    return np.divide(finite, peak, dtype=np.float32) if peak > 0.0 else finite


def smooth_heat(grid: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Enlarge a grid [n, n] to [size, size] by bicubic interpolation, within the grid's range.

    The centre of cell i lies at (i + 0.5) * size / n, measured from the edge of the image.
    """
    enlarged = cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    heat: NDArray[np.float32] = np.asarray(enlarged, np.float32)
    return heat.clip(grid.min(), grid.max())  # bicubic overshoots


def paint_heat(
    pixels: NDArray[np.uint8],
    heat: NDArray[np.float32],
    weight: NDArray[np.float32],
    *,
    signed: bool,
) -> NDArray[np.uint8]:
    """Blend normalised heat over pixels.

    Args:
        pixels: [h, w, 3] uint8 RGB.
        heat: [h, w] float32, in 0..1, or -1..1 where ``signed``.
        weight: [h, w] float32 in 0..1, multiplies the opacity.
        signed: which colour map to take.

    Returns: a new [h, w, 3] uint8 RGB.
    """
    scale, offset, colour_map = (127.5, 127.5, _DIVERGING) if signed else (255.0, 0.0, _SEQUENTIAL)
    level = cv2.convertScaleAbs(heat, alpha=scale, beta=offset)
    colours = cv2.applyColorMap(level, colour_map)
    opacity = cv2.multiply(np.abs(heat), weight, scale=_MOST_OPAQUE)
    blended = cv2.blendLinear(colours, pixels, opacity, 1.0 - opacity)
    return np.asarray(blended, np.uint8)


def _sequential_map() -> NDArray[np.uint8]:
    ramp = np.arange(256, dtype=np.uint8)[:, np.newaxis]
    return np.ascontiguousarray(cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO)[..., ::-1], np.uint8)


def _diverging_map() -> NDArray[np.uint8]:
    at = np.linspace(0.0, 255.0, len(_DIVERGING_STOPS))
    channels = [
        np.interp(np.arange(256), at, stops) for stops in zip(*_DIVERGING_STOPS, strict=True)
    ]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)[:, np.newaxis]


_SEQUENTIAL = _sequential_map()  # [256, 1, 3] uint8 RGB, what cv2.applyColorMap takes
_DIVERGING = _diverging_map()
