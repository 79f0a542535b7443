from __future__ import annotations

import base64
import codecs
import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service import replies
from service.pipeline import Networks
from service.schemas import EXAMPLE_REPLY, PredictReply
from tests.service.image_files import animation, encoded, exif
from tests.service.serving import RunningServer, Serve, assert_problem

UInt8 = NDArray[np.uint8]
JPEG = {"content-type": "image/jpeg"}
# A photo read alone or in a batch: the networks' arithmetic may differ in the last bits.
BATCH_TOLERANCE = 1e-3


def jpeg(pixels: UInt8) -> bytes:
    return encoded(Image.fromarray(pixels), "JPEG", quality=92)


def predict(client: httpx.Client, photo: bytes, **options: object) -> dict[str, Any]:
    query = {name.rstrip("_"): str(value) for name, value in options.items()}
    response = client.post("/predict", content=photo, headers=JPEG, params=query)
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


def without_measurements(reply: dict[str, Any]) -> dict[str, Any]:
    return {key: reply[key] for key in reply.keys() - {"request_id", "timings_ms"}}


@pytest.fixture(scope="module")
def scene(portrait: UInt8) -> UInt8:
    """[700,900,3]: the portrait twice, on the right at three fifths of the size."""
    page = np.full((700, 900, 3), 200, np.uint8)
    page[100:612, :512] = portrait
    small = np.asarray(Image.fromarray(portrait).resize((307, 307)))
    page[200:507, 560:867] = small
    return page


def test_reply_has_the_shape_of_version_1(
    client: httpx.Client, portrait_jpeg: bytes, networks: Networks
) -> None:
    response = client.post("/predict", content=portrait_jpeg, headers=JPEG)
    reply = response.json()
    assert {"request_id", "model", "image", "faces", "timings_ms"} <= set(reply)
    assert reply["request_id"] == response.headers["x-request-id"]
    assert reply["model"] == {
        "name": networks.classifier.contract.name,
        "version": f"sha256:{networks.classifier.sha256}",
    }
    assert reply["image"] == {"width": 512, "height": 512, "format": "JPEG", "frames": 1}
    assert set(reply["timings_ms"]) >= {"decode", "detect", "classify", "queue", "total"}
    (face,) = reply["faces"]
    assert set(face["head_pose"]) == {"yaw", "pitch", "roll"}
    assert 0.9 < face["detection_score"] <= 1
    expression = face["expression"]
    assert list(expression["probabilities"]) == list(networks.classifier.contract.labels)
    assert sum(expression["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    best = max(expression["probabilities"], key=expression["probabilities"].__getitem__)
    assert expression["label"] == best
    assert expression["confidence"] == expression["probabilities"][best]
    grid = np.array(face["attention"]["grid"])
    assert grid.shape == (7, 7)
    assert 0 <= grid.min() <= grid.max() <= 1
    assert face["attention"]["overlay"] is None
    assert face["evidence"] is None


def test_face_is_where_it_is(client: httpx.Client, portrait_jpeg: bytes) -> None:
    (face,) = predict(client, portrait_jpeg)["faces"]
    box, marks = face["box"], face["landmarks"]
    for x, y in marks.values():
        assert box["x1"] < x < box["x2"]
        assert box["y1"] < y < box["y2"]
    assert marks["nose"] == pytest.approx([224, 129], abs=12)
    # Left and right are the viewer's.
    assert marks["left_eye"][0] < marks["nose"][0] < marks["right_eye"][0]
    assert marks["mouth_left"][0] < marks["mouth_right"][0]


def test_documented_example_is_a_reply() -> None:
    reply = PredictReply.model_validate(EXAMPLE_REPLY)
    assert reply.model_dump(mode="json") == EXAMPLE_REPLY


def test_every_form_of_request_gets_the_same_answer(
    client: httpx.Client, portrait_jpeg: bytes
) -> None:
    text = base64.b64encode(portrait_jpeg).decode()
    responses = [
        client.post("/predict", content=portrait_jpeg, headers=JPEG),
        client.post("/predict", content=portrait_jpeg, headers={"content-type": "image/x-any"}),
        client.post(
            "/predict", content=iter([portrait_jpeg[:999], portrait_jpeg[999:]]), headers=JPEG
        ),
        client.post("/predict", files={"file": ("../a;b\n.jpg", portrait_jpeg)}),
        client.post("/predict", files={"file": portrait_jpeg}, data={"comment": "hello"}),
        client.post("/predict", json={"image": text}),
        client.post(
            "/predict",
            content=codecs.BOM_UTF8 + json.dumps({"image": text}).encode(),
            headers={"content-type": "application/json"},
        ),
        client.post("/predict", json={"image": f"data:image/jpeg;base64,{text}"}),
    ]
    first, *others = [without_measurements(response.json()) for response in responses]
    assert len(first["faces"]) == 1
    for other in others:
        assert other == first


@pytest.mark.parametrize(
    ("name", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})]
)
def test_other_formats(
    client: httpx.Client, portrait: UInt8, name: str, options: dict[str, object]
) -> None:
    photo = encoded(Image.fromarray(portrait), name, **options)
    response = client.post(
        "/predict", content=photo, headers={"content-type": f"image/{name.lower()}"}
    )
    assert response.json()["image"]["format"] == name
    assert len(response.json()["faces"]) == 1


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_boxes_are_in_the_frame_a_viewer_sees(
    client: httpx.Client, portrait: UInt8, orientation: int
) -> None:
    quarter_turns = {3: 2, 6: 1, 8: 3}[orientation]
    stored = np.rot90(portrait[:, 60:], quarter_turns)
    upright = predict(client, jpeg(portrait[:, 60:]))
    turned = predict(
        client, encoded(Image.fromarray(stored), "JPEG", quality=92, exif=exif(orientation))
    )
    assert turned["image"] == upright["image"]
    assert list(turned["faces"][0]["box"].values()) == pytest.approx(
        list(upright["faces"][0]["box"].values()), abs=2
    )


def test_no_face_is_an_empty_list(client: httpx.Client) -> None:
    reply = predict(client, jpeg(np.full((120, 200, 3), 90, np.uint8)))
    assert reply["faces"] == []
    assert reply["faces_found"] == 0
    assert reply["image"]["width"] == 200


def test_faces_come_largest_first_and_can_be_cut(client: httpx.Client, scene: UInt8) -> None:
    both = predict(client, jpeg(scene))
    widths = [face["box"]["x2"] - face["box"]["x1"] for face in both["faces"]]
    assert len(widths) == 2
    assert widths == sorted(widths, reverse=True)
    assert both["notes"] == []
    one = predict(client, jpeg(scene), max_faces=1)
    assert [face["box"] for face in one["faces"]] == [both["faces"][0]["box"]]
    assert one["faces_found"] == 2
    assert "max_faces" in one["notes"][0]


def test_boxes_of_a_photo_decoded_smaller_stay_inside(
    client: httpx.Client, portrait: UInt8
) -> None:
    """Its sides are no multiples of the reduction, and the face reaches its right border."""
    height, width = portrait.shape[:2]
    half = portrait[:, : width // 2]
    large = cv2.resize(half, (4011, round(4011 * height / half.shape[1])))
    for face in predict(client, jpeg(np.asarray(large, np.uint8)))["faces"]:
        assert 0 <= face["box"]["x1"] < face["box"]["x2"] <= 4011


def test_min_score_is_honoured(client: httpx.Client, portrait_jpeg: bytes) -> None:
    assert predict(client, portrait_jpeg, min_score=1)["faces"] == []
    assert len(predict(client, portrait_jpeg, min_score=0.5)["faces"]) == 1


def test_evidence_adds_up_to_the_logit(
    client: httpx.Client, portrait_jpeg: bytes, networks: Networks
) -> None:
    logits = {}
    for label in networks.classifier.contract.labels:
        reply = predict(client, portrait_jpeg, explain="evidence", class_=label)
        evidence = reply["faces"][0]["evidence"]
        assert evidence["class"] == label
        assert np.shape(evidence["grid"]) == (7, 7)
        assert np.mean(evidence["grid"]) + evidence["bias"] == pytest.approx(
            evidence["logit"], abs=1e-4
        )
        logits[label] = evidence["logit"]
    predicted = predict(client, portrait_jpeg, explain="evidence")["faces"][0]
    assert predicted["evidence"]["class"] == predicted["expression"]["label"]
    assert predicted["expression"]["label"] == max(logits, key=logits.__getitem__)


def overlay_pixels(uri: str) -> UInt8:
    head, text = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_overlay_shows_the_chosen_map(
    client: httpx.Client, portrait_jpeg: bytes, networks: Networks
) -> None:
    size = networks.classifier.contract.input_size
    (face,) = predict(client, portrait_jpeg, heatmap="overlay")["faces"]
    attention = overlay_pixels(face["attention"]["overlay"])
    assert attention.shape == (size, size, 3)
    (face,) = predict(client, portrait_jpeg, heatmap="overlay", explain="evidence")["faces"]
    assert face["attention"]["overlay"] is None
    evidence = overlay_pixels(face["evidence"]["overlay"])
    assert evidence.shape == (size, size, 3)
    assert not np.array_equal(attention, evidence)


def test_a_picture_of_too_many_bytes_is_asked_for_in_another_form(
    serve: Serve, portrait_jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "MAX_PICTURE_BYTES", 100_000)
    with serve().client() as client:
        refused = client.post(
            "/predict", content=portrait_jpeg, headers={**JPEG, "Accept": "image/png"}
        )
        assert "Ask for image/jpeg" in assert_problem(refused, 413, "image-too-large")
        drawn = client.post(
            "/predict", content=portrait_jpeg, headers={**JPEG, "Accept": "image/jpeg"}
        )
        assert drawn.status_code == 200


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg"])
@pytest.mark.parametrize("explain", ["attention", "evidence"])
def test_photo_comes_back_drawn_on(
    client: httpx.Client, portrait: UInt8, portrait_jpeg: bytes, media_type: str, explain: str
) -> None:
    response = client.post(
        "/predict",
        content=portrait_jpeg,
        headers={**JPEG, "accept": media_type},
        params={"explain": explain},
    )
    assert response.headers["content-type"] == media_type
    assert response.headers["vary"] == "Accept"
    drawn = np.asarray(Image.open(io.BytesIO(response.content)))
    assert drawn.shape == portrait.shape
    difference = np.abs(drawn.astype(int) - portrait)
    # JPEG changes the rest of the photo too, but little.
    assert difference[50:190, 170:280].mean() > 2 * difference[300:].mean()


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("image/*", "image/jpeg"),
        ("application/json;q=0.5, image/png", "image/png"),
        ("text/html,application/xml;q=0.9,*/*;q=0.8", "application/json"),
    ],
)
def test_accept_chooses_the_reply(
    client: httpx.Client, portrait_jpeg: bytes, accept: str, media_type: str
) -> None:
    response = client.post("/predict", content=portrait_jpeg, headers={**JPEG, "accept": accept})
    assert response.headers["content-type"] == media_type


@pytest.mark.parametrize(
    "accept", ["text/html", "image/webp", "nonsense", "application/json;q=0", "*/*, " * 200 + "*/*"]
)
def test_accept_that_nothing_fits_is_refused(
    client: httpx.Client, portrait_jpeg: bytes, accept: str
) -> None:
    response = client.post("/predict", content=portrait_jpeg, headers={**JPEG, "accept": accept})
    assert_problem(response, 406, "not-acceptable")


@pytest.mark.parametrize("name", ["GIF", "WEBP"])
def test_animation_says_that_its_first_frame_was_read(client: httpx.Client, name: str) -> None:
    reply = predict(client, animation(name, frames=3))
    assert reply["image"]["frames"] == 3
    assert "3 frames" in reply["notes"][0]


def test_largest_phone_photo_is_read(client: httpx.Client, portrait: UInt8) -> None:
    page = np.zeros((4992, 6656, 3), np.uint8)  # 33 megapixels
    page[1000:3048, 2000:4048] = np.repeat(np.repeat(portrait, 4, 0), 4, 1)
    reply = predict(client, jpeg(page))
    assert len(reply["faces"]) == 1
    assert reply["faces"][0]["landmarks"]["nose"] == pytest.approx(
        [2000 + 4 * 224, 1000 + 4 * 129], abs=60
    )


def moved(portrait: UInt8, step: int) -> bytes:
    """A photo that no other step gives: the face sits somewhere else."""
    page = np.full((480, 640, 3), 128, np.uint8)
    page[step : step + 300, 15 * step : 15 * step + 300] = portrait[:300, 80:380]
    return jpeg(page)


def test_crowd_gets_the_answers_each_would_get_alone(
    server: RunningServer, portrait: UInt8
) -> None:
    photos = [moved(portrait, step) for step in range(12)]
    with server.client() as client, ThreadPoolExecutor(len(photos)) as crowd:
        alone = [predict(client, photo) for photo in photos]
        together = list(crowd.map(lambda photo: predict(client, photo), photos * 2))
    for number, reply in enumerate(together):
        expected, got = alone[number % len(photos)]["faces"], reply["faces"]
        assert len(got) == len(expected) == 1
        assert list(got[0]["box"].values()) == pytest.approx(
            list(expected[0]["box"].values()), abs=0.5
        )
        assert got[0]["expression"]["probabilities"] == pytest.approx(
            expected[0]["expression"]["probabilities"], abs=BATCH_TOLERANCE
        )


def test_small_faces_behind_a_large_one_are_found_where_asked_for(
    client: httpx.Client, serve: Serve, networks: Networks, portrait: UInt8
) -> None:
    scene = np.full((480, 640, 3), 90, np.uint8)
    scene[-400:, -400:] = portrait[:400, :400]
    head = portrait[40:220, 160:340]
    scene[30:72, 20:62] = cv2.resize(head, (42, 42), interpolation=cv2.INTER_AREA)
    photo = jpeg(scene)
    assert predict(client, photo)["faces_found"] == 1
    both = predict(client, photo, search="thorough")
    assert both["faces_found"] == 2
    assert both["faces"][1]["box"]["x2"] < 62
    with serve(networks, search="thorough").client() as thorough:
        assert predict(thorough, photo)["faces_found"] == 2
        assert predict(thorough, photo, search="quick")["faces_found"] == 1


def test_a_leaning_face_is_read_upright(
    client: httpx.Client, networks: Networks, portrait: UInt8
) -> None:
    turn = cv2.getRotationMatrix2D((228.0, 118.0), -60.0, 1.0)
    turn[:, 2] += (320 - 228, 240 - 118)
    scene = cv2.warpAffine(portrait, turn, (640, 480), borderValue=(90, 90, 90))
    (upright,) = predict(client, jpeg(portrait))["faces"]
    (face,) = predict(client, jpeg(np.asarray(scene, np.uint8)))["faces"]
    assert face["head_pose"]["roll"] - upright["head_pose"]["roll"] == pytest.approx(60, abs=8)
    known, found = (np.array(list(f["landmarks"].values())) for f in (upright, face))
    there = known @ turn[:, :2].T + turn[:, 2]
    assert np.linalg.norm(found - there, axis=1).mean() < 8
    assert face["expression"]["label"] == "happiness"


def test_a_large_photo_is_drawn_in_its_own_size(client: httpx.Client, portrait: UInt8) -> None:
    """Though a quarter of its pixels would do to read it."""
    large = jpeg(np.asarray(cv2.resize(portrait, (4096, 4096)), np.uint8))
    drawn = client.post("/predict", content=large, headers=JPEG | {"accept": "image/jpeg"})
    assert Image.open(io.BytesIO(drawn.content)).size == (4096, 4096)


def test_settings_bound_what_a_client_may_ask(serve: Serve, scene: UInt8) -> None:
    with serve(max_faces=1).client() as client:
        assert len(predict(client, jpeg(scene))["faces"]) == 1
        response = client.post("/predict?max_faces=2", content=b"x", headers=JPEG)
        assert "1" in assert_problem(response, 422, "invalid-option")


def test_photos_never_touch_the_disk(
    client: httpx.Client, portrait: UInt8, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a photo is being written to disk")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", refuse)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8)
    photo = encoded(Image.fromarray(noise), "PNG")
    assert len(photo) > 5_000_000
    assert client.post("/predict", files={"file": photo}).status_code == 200
