"""How sharp a face is, as the expression network sees it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# Below this spread of grey levels (squared) a crop shows nothing that could be sharp.
LEAST_VARIANCE = 1.0


def sharpness(crop: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of `crop` over the variance of its grey levels, 0 and up.

    `crop` is an aligned face [S,S,3] uint8 RGB. The first variance is the usual measure of focus;
    the division makes it one of detail alone, not of contrast, so that a dim photo is not called
    blurred. It says nothing of blur that is gone once a large face is shrunk to the crop, since
    the network does not see it either, and noise counts as detail.
    """
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    detail = _variance(np.asarray(cv2.Laplacian(grey, cv2.CV_32F), np.float32))
    return detail / max(LEAST_VARIANCE, _variance(np.asarray(grey, np.uint8)))


def _variance(values: NDArray[np.uint8] | NDArray[np.float32]) -> float:
    deviation = cv2.meanStdDev(values)[1]
    return float(deviation[0, 0]) ** 2
