"""Image files made in memory for the tests of imaging."""

from __future__ import annotations

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.imaging import ImageLimits, decode_image

LIMITS = ImageLimits(max_bytes=10_000_000, max_pixels=1_000_000)


def picture(height: int = 20, width: int = 24, seed: int = 0) -> NDArray[np.uint8]:
    """[height, width, 3] uint8 RGB without any symmetry; smooth, so that JPEG keeps it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def rgb(height: int = 20, width: int = 24, seed: int = 0) -> Image.Image:
    return Image.fromarray(picture(height, width, seed))


def exif(orientation: object) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def animation(image_format: str, frames: int = 3, **options: object) -> bytes:
    first, *rest = (rgb(seed=seed) for seed in range(frames))
    return encoded(first, image_format, save_all=True, append_images=rest, **options)


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    return decode_image(data, LIMITS).pixels


def assert_near(actual: NDArray[np.uint8], expected: NDArray[np.generic], tolerance: int) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected.astype(int)).max() <= tolerance
