"""64 clients at once, each with a photo of its own: everyone gets the answer to its own photo."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.service.image_files import encoded
from tests.service.serving import RunningServer, Serve

CLIENTS = 64
# A batch adds in another order than one photo alone: the last digits differ.
PROBABILITY_TOLERANCE = 1e-4
PIXEL_TOLERANCE = 0.05


def photo_of(number: int, portrait: NDArray[np.uint8]) -> bytes:
    """The face at a place, brightness and width of its own, in a picture of its own size."""
    page = np.full((200 + number, 300 + 2 * number, 3), 3 * number, np.uint8)
    face = portrait[16:176:1, 144:304:1]
    if number % 2:
        face = face[:, ::-1]
    shade = (face * (0.6 + 0.4 * number / CLIENTS)).astype(np.uint8)
    page[number // 2 : number // 2 + 160, number : number + 160] = shade
    return encoded(Image.fromarray(page), "PNG")


def ask(client: httpx.Client, photo: bytes) -> dict[str, Any]:
    response = client.post("/predict", content=photo, headers={"content-type": "image/png"})
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


@pytest.mark.parametrize("batch", [0, 4])
def test_everyone_in_a_crowd_gets_its_own_answer(
    batch: int, serve: Serve, portrait: NDArray[np.uint8]
) -> None:
    server: RunningServer = serve(
        max_in_flight_images=CLIENTS, max_detector_batch=batch, max_classifier_batch=batch
    )
    photos = [photo_of(number, portrait) for number in range(CLIENTS)]
    with server.client() as client:
        alone = [ask(client, photo) for photo in photos]
    with server.client() as client, ThreadPoolExecutor(CLIENTS) as crowd:
        together = list(crowd.map(lambda photo: ask(client, photo), photos))
    batches = server.state.metrics.registry.get_sample_value
    count = batches("lan_fer_batch_size_count", {"network": "classifier"})
    total = batches("lan_fer_batch_size_sum", {"network": "classifier"})
    assert count is not None
    assert total is not None
    assert (total > count) is bool(batch), "faces share batches where they were told to"
    for expected, reply in zip(alone, together, strict=True):
        assert reply["image"] == expected["image"]
        assert len(reply["faces"]) == len(expected["faces"]) == 1
        assert_same(expected["faces"][0], reply["faces"][0])


def assert_same(expected: dict[str, Any], face: dict[str, Any]) -> None:
    for name, probability in expected["expression"]["probabilities"].items():
        difference = abs(face["expression"]["probabilities"][name] - probability)
        assert difference <= PROBABILITY_TOLERANCE
    for edge, value in expected["box"].items():
        assert abs(face["box"][edge] - value) <= PIXEL_TOLERANCE
