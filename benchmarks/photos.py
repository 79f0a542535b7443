"""Photos composed at run time from the sample faces that scikit-image and matplotlib carry.

Nothing is stored in the repository. Every photo is different: mirrored, turned, brighter or darker
faces in front of different scenes, with the grain that makes a JPEG as large as a camera's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import skimage.data
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]

SIZES = {"640x480": (480, 640), "1080p": (1080, 1920), "12MP": (3000, 4000)}
SCENES = ("coffee", "rocket", "chelsea")
GRAIN = 4.0
JPEG_QUALITY = 90


@dataclass(frozen=True, eq=False)
class Portrait:
    """A photo of one face: [H,W,3] uint8 RGB, the face's box (x1, y1, x2, y2) in its pixels."""

    pixels: UInt8
    box: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Scene:
    """A composed photo: [H,W,3] uint8 RGB, and the boxes [N,4] of the faces put into it."""

    pixels: UInt8
    boxes: NDArray[np.float64]


@lru_cache(maxsize=1)
def portraits() -> tuple[Portrait, ...]:
    """Two photos in the public domain, each with the box of its face."""
    astronaut = np.asarray(skimage.data.astronaut()[:260, 90:360], np.uint8)
    path = Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    hopper = np.asarray(plt.imread(path)[20:400, 90:420], np.uint8)
    return (
        Portrait(astronaut, (88, 58, 183, 178)),
        Portrait(hopper, (86, 96, 263, 308)),
    )


def background(height: int, width: int, rng: np.random.Generator) -> UInt8:
    """[height,width,3]: a scene without people, cut and mirrored at random, out of focus."""
    scene = np.asarray(getattr(skimage.data, str(rng.choice(SCENES)))(), np.uint8)
    share = rng.uniform(0.6, 1.0)
    rows, columns = (int(side * share) for side in scene.shape[:2])
    top = rng.integers(scene.shape[0] - rows + 1)
    left = rng.integers(scene.shape[1] - columns + 1)
    cut = scene[top : top + rows, left : left + columns]
    if rng.random() < 0.5:
        cut = cut[:, ::-1]
    return np.asarray(
        cv2.resize(np.ascontiguousarray(cut), (width, height), interpolation=cv2.INTER_CUBIC),
        np.uint8,
    )


def compose(
    size: tuple[int, int],
    face_heights: list[float],
    rng: np.random.Generator,
    sources: Sequence[Portrait] | None = None,
) -> Scene:
    """A photo of `size` (height, width) with faces of these heights (pixels) on a grid.

    The grid has a cell for each face; a face keeps to the middle of its cell, and is drawn by lot
    from `sources`, else from the portraits.
    """
    sources = sources or portraits()
    height, width = size
    pixels = background(height, width, rng)
    columns = int(np.ceil(np.sqrt(len(face_heights) * width / height))) or 1
    rows = -(-len(face_heights) // columns) or 1
    boxes = []
    for index, face_height in enumerate(face_heights):
        centre = (
            (index % columns + 0.5 + rng.uniform(-0.08, 0.08)) * width / columns,
            (index // columns + 0.5 + rng.uniform(-0.05, 0.05)) * height / rows,
        )
        boxes.append(_paste(pixels, centre, face_height, rng, sources))
    grain = rng.normal(0, GRAIN, (height, width, 1)).astype(np.float32)
    noisy = np.clip(pixels + grain, 0, 255).astype(np.uint8)
    return Scene(noisy, np.array(boxes, np.float64).reshape(-1, 4))


def _paste(
    pixels: UInt8,
    centre: tuple[float, float],
    face_height: float,
    rng: np.random.Generator,
    sources: Sequence[Portrait],
) -> NDArray[np.float64]:
    """Blend a portrait in, its face at `centre`; returns the face's box, cut at the photo."""
    source = sources[int(rng.integers(len(sources)))]
    x1, y1, x2, y2 = source.box
    scale = face_height / (y2 - y1)
    middle = ((x1 + x2) / 2, (y1 + y2) / 2)
    turn = np.asarray(cv2.getRotationMatrix2D(middle, rng.uniform(-12, 12), scale), np.float64)
    turn[:, 2] += np.subtract(centre, middle)
    portrait, mirrored = source.pixels, rng.random() < 0.5
    if mirrored:
        portrait = np.ascontiguousarray(portrait[:, ::-1])
        shift = portrait.shape[1] - x2 - x1
        turn[:, 2] -= turn[:, 0] * shift
    if scale < 0.5:
        factor = int(1 / scale)
        shape = (portrait.shape[1] // factor, portrait.shape[0] // factor)
        portrait = np.asarray(cv2.resize(portrait, shape, interpolation=cv2.INTER_AREA), np.uint8)
        turn[:, :2] *= factor
    bright = np.clip(portrait * rng.uniform(0.6, 1.2), 0, 255).astype(np.uint8)
    _blend(pixels, bright, turn)
    half = np.array(((x2 - x1) / 2, (y2 - y1) / 2)) * scale
    box = np.concatenate((np.array(centre) - half, np.array(centre) + half))
    limits = (pixels.shape[1], pixels.shape[0]) * 2
    return np.asarray(np.clip(box, 0, limits), np.float64)


def _blend(pixels: UInt8, portrait: UInt8, matrix: NDArray[np.float64]) -> None:
    """Warp the portrait into the photo by `matrix` [2,3], its border fading out."""
    height, width = portrait.shape[:2]
    corners = np.array([(0, 0, 1), (width, 0, 1), (0, height, 1), (width, height, 1)]) @ matrix.T
    low = np.clip(corners.min(0).astype(int), 0, (pixels.shape[1] - 1, pixels.shape[0] - 1))
    high = np.clip(corners.max(0).astype(int) + 1, low + 1, (pixels.shape[1], pixels.shape[0]))
    moved = matrix - np.column_stack((np.zeros((2, 2)), low))
    size = (int(high[0] - low[0]), int(high[1] - low[1]))
    mask = np.zeros((height, width), np.float32)
    edge = max(1, min(height, width) // 12)
    mask[edge:-edge, edge:-edge] = 1
    soft = cv2.blur(mask, (2 * edge + 1, 2 * edge + 1))
    weight = np.asarray(cv2.warpAffine(soft, moved, size))[..., None]
    drawn = cv2.warpAffine(portrait, moved, size, borderMode=cv2.BORDER_REPLICATE)
    region = pixels[low[1] : high[1], low[0] : high[0]]
    region[:] = (region * (1 - weight) + drawn * weight).astype(np.uint8)


def usual_heights(size: tuple[int, int], faces: int) -> list[float]:
    """Heights of faces that fill such a photo as people do: one is a portrait, many are a group."""
    if not faces:
        return []
    columns = int(np.ceil(np.sqrt(faces * size[1] / size[0])))
    rows = -(-faces // columns)
    return [min(size[0] / rows, size[1] / columns) * 0.42] * faces


def jpeg(pixels: UInt8) -> bytes:
    """Encoded as cameras do: baseline, 4:2:0."""
    parameters = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), parameters)
    return encoded.tobytes()


def usual_photos(size: str, faces: int, count: int) -> list[bytes]:
    """`count` different JPEGs of a size of SIZES with so many faces; always the same ones."""
    rng = np.random.default_rng((faces, *SIZES[size]))
    heights = usual_heights(SIZES[size], faces)
    return [jpeg(compose(SIZES[size], heights, rng).pixels) for _ in range(count)]
