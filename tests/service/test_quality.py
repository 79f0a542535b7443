from __future__ import annotations

from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from service.faces.quality import sharpness


@pytest.fixture(scope="module")
def face(portrait: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[112,112,3] uint8 RGB."""
    return np.ascontiguousarray(portrait[60:172, 169:281])


def blurred(face: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    return np.asarray(cv2.GaussianBlur(face, (0, 0), sigma), np.uint8)


def test_blur_lowers_it(face: NDArray[np.uint8]) -> None:
    values = [sharpness(face), *(sharpness(blurred(face, sigma)) for sigma in (1, 2, 4))]
    assert values == sorted(values, reverse=True)
    assert values[0] > 10 * values[-1]


def test_contrast_and_brightness_hardly_change_it(face: NDArray[np.uint8]) -> None:
    dim = np.asarray(np.rint(face * 0.4 + 30), np.uint8)
    assert sharpness(dim) == pytest.approx(sharpness(face), rel=0.05)


def test_an_empty_crop_has_none() -> None:
    assert sharpness(np.full((112, 112, 3), 90, np.uint8)) == 0


def test_a_reply_tells_a_blurred_face(client: httpx.Client, portrait: NDArray[np.uint8]) -> None:
    sharp, soft = (
        reply_of(client, pixels)["faces"][0]["sharpness"]
        for pixels in (portrait, blurred(portrait, 6))
    )
    assert soft < 0.002 < 0.01 < sharp


def reply_of(client: httpx.Client, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    _, png = cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]))
    reply = client.post("/predict", content=png.tobytes(), headers={"Content-Type": "image/png"})
    parsed: dict[str, Any] = reply.raise_for_status().json()
    return parsed
