"""Ranges of the face detector's activations, which its 8-bit file is made with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from service.detector_int8 import quantise_detector
from service.faces.detector import network_input
from service.imaging import decode_image
from training.datasets.records import Split
from training.preparation import LIMITS

UInt8 = NDArray[np.uint8]

# (height, width) of canvases, as the service looks at most photos.
CANVASES = ((192, 256), (256, 192), (192, 192))
COUNT = 96
SMALLEST_FACE = 24
MOST_FACES = 4


def measure_ranges(network: Path, faces: Split, ranges: Path, output: Path) -> None:
    """Write `ranges` and the 8-bit file `output` of the detector in the file `network`.

    `faces` are images of one face each; they are drawn in several sizes on blurred ones. Raises
    ModelFileError where the network cannot be read.
    """
    quantise_detector(network, output, ranges=ranges, canvases=draw_canvases(faces.paths, COUNT))


def draw_canvases(paths: Sequence[Path], count: int) -> Iterator[NDArray[np.float32]]:
    """`count` canvases [1,3,H,W] float32, BGR minus means, of images drawn by a fixed seed.

    Every third shows one face that fills it, the others up to MOST_FACES.
    """
    rng = np.random.default_rng(0)

    def face(height: int, width: int) -> UInt8:
        image = decode_image(paths[int(rng.integers(len(paths)))].read_bytes(), LIMITS).pixels
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(resized, np.uint8)

    for index in range(count):
        height, width = CANVASES[index % len(CANVASES)]
        canvas = np.asarray(cv2.GaussianBlur(face(height, width), (0, 0), 3), np.uint8)
        short = min(height, width)
        sides = rng.integers(SMALLEST_FACE, short, rng.integers(1, MOST_FACES + 1)).tolist()
        for side in [short] if index % 3 == 0 else sides:
            top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
            canvas[top : top + side, left : left + side] = face(side, side)
        yield network_input([canvas])
