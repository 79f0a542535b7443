from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.problems import TYPE_PREFIX
from tests.service.image_files import encoded
from tests.service.serving import Serve, assert_problem

UInt8 = NDArray[np.uint8]
BROKEN = b"\xff\xd8\xff no photo"


def photo(portrait: UInt8, step: int) -> bytes:
    """The portrait in a picture whose width tells which one it is."""
    page = np.full((512, 512 + step, 3), 128, np.uint8)
    page[:, step:] = portrait
    return encoded(Image.fromarray(page), "JPEG", quality=92)


@pytest.fixture(scope="module")
def photos(portrait: UInt8) -> list[bytes]:
    return [photo(portrait, step) for step in range(3)]


def files(photos: list[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (f"{number}.jpg", data)) for number, data in enumerate(photos)]


def as_json(photos: list[bytes]) -> dict[str, list[str]]:
    return {"images": [base64.b64encode(data).decode() for data in photos]}


def results(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    reply = response.json()
    assert set(reply) == {"request_id", "results"}
    assert reply["request_id"] == response.headers["x-request-id"]
    items: list[dict[str, Any]] = reply["results"]
    return items


def test_each_photo_gets_the_answer_it_would_get_alone(
    client: httpx.Client, photos: list[bytes]
) -> None:
    items = results(client.post("/predict/batch?explain=evidence", files=files(photos)))
    again = results(client.post("/predict/batch?explain=evidence", json=as_json(photos)))
    assert len(items) == len(again) == len(photos)
    for data, item, other in zip(photos, items, again, strict=True):
        alone = client.post("/predict?explain=evidence", files={"file": data}).json()
        assert (item["status"], item["problem"]) == (200, None)
        assert item["reply"].keys() == alone.keys()
        assert item["reply"]["image"] == other["reply"]["image"] == alone["image"]
        (face,), (expected,) = item["reply"]["faces"], alone["faces"]
        assert face["box"]["x1"] == pytest.approx(expected["box"]["x1"], abs=0.5)
        assert face["expression"]["label"] == expected["expression"]["label"]
        assert face["evidence"]["class"] == expected["evidence"]["class"]


def test_bad_photo_does_not_spoil_the_others(client: httpx.Client, photos: list[bytes]) -> None:
    mixed = [photos[0], BROKEN, b"", b"text", photos[1]]
    for body in ({"files": files(mixed)}, {"json": as_json(mixed)}):
        response = client.post("/predict/batch", **body)
        items = results(response)
        assert [item["status"] for item in items] == [200, 422, 400, 415, 200]
        for item in items[1:4]:
            assert item["reply"] is None
            assert item["problem"]["status"] == item["status"]
            assert item["problem"]["request_id"] == response.headers["x-request-id"]
        assert items[1]["problem"]["type"] == TYPE_PREFIX + "invalid-image"
        assert [items[i]["reply"]["image"]["width"] for i in (0, 4)] == [512, 513]


def test_text_that_is_no_base64_is_that_photos_problem(
    client: httpx.Client, photos: list[bytes]
) -> None:
    body = as_json(photos[:1])
    body["images"].insert(0, "http://example.org/photo.jpg")
    first, second = results(client.post("/predict/batch", json=body))
    assert first["problem"]["type"] == TYPE_PREFIX + "invalid-image"
    assert second["status"] == 200


def test_photos_count_towards_the_limits(serve: Serve, photos: list[bytes]) -> None:
    with serve(max_batch_images=2).client() as client:
        assert len(results(client.post("/predict/batch", files=files(photos[:2])))) == 2
        for body in ({"files": files(photos)}, {"json": as_json(photos)}):
            response = client.post("/predict/batch", **body)
            assert "2" in assert_problem(response, 413, "too-many-images")
        both = client.post("/predict", files=files(photos[:2]))
        assert "/predict/batch" in assert_problem(both, 413, "too-many-images")
    with serve(max_in_flight_images=1).client() as client:
        response = client.post("/predict/batch", files=files(photos[:2]))
        assert "At most 1 photo can" in assert_problem(response, 413, "too-many-images")
        assert len(results(client.post("/predict/batch", files=files(photos[:1])))) == 1


def test_photos_count_towards_the_keys_limit(serve: Serve, photos: list[bytes]) -> None:
    key = "0123456789abcdef"
    server = serve(api_keys=f"tester={key}", rate_limit="3/hour")
    with server.client() as client:
        client.headers["X-API-Key"] = key
        assert len(results(client.post("/predict/batch", files=files(photos[:2])))) == 2
        response = client.post("/predict/batch", files=files(photos[:2]))
        assert_problem(response, 429, "rate-limited")
        assert int(response.headers["retry-after"]) > 0


def test_photo_that_is_late_is_a_problem_of_its_own(
    client: httpx.Client, photos: list[bytes]
) -> None:
    headers = {"x-request-timeout-ms": "1"}
    items = results(client.post("/predict/batch", files=files(photos), headers=headers))
    assert [item["status"] for item in items] == [504] * 3
    assert items[0]["problem"]["type"] == TYPE_PREFIX + "deadline-exceeded"


@pytest.mark.parametrize(
    ("request_parts", "status", "slug"),
    [
        ({"json": {"images": []}}, 422, "missing-image"),
        ({"json": {"image": "x"}}, 422, "missing-image"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, None),
        ({"files": {"photo": b"x"}}, 422, "missing-image"),
        ({"content": b"x", "headers": {"content-type": "image/jpeg"}}, 415, None),
        ({"files": {"file": b"x"}, "params": {"class": "anger"}}, 422, "invalid-option"),
        ({"files": {"file": b"x"}, "params": {"classes": "anger"}}, 422, "invalid-option"),
        ({"files": {"file": b"x"}, "headers": {"accept": "image/png"}}, 406, "not-acceptable"),
    ],
)
def test_call_that_makes_no_sense_is_refused_whole(
    client: httpx.Client, request_parts: dict[str, Any], status: int, slug: str | None
) -> None:
    response = client.post("/predict/batch", **request_parts)
    names = {400: "malformed-request", 415: "unsupported-media-type"}
    assert_problem(response, status, slug or names[status])


def test_document_describes_it(client: httpx.Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/predict/batch"]["post"]
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/BatchReply"}
    assert {"413", "429", "503"} <= set(operation["responses"])
