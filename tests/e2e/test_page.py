"""The page in a real Chromium, against a real server.

Skips with the reason where Playwright or Chromium is not there; with REQUIRE_BROWSER=1 that is a
failure. Screenshots go to $PAGE_SCREENSHOTS, for people to look at.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.faces.alignment import similarity_transform, warp_crop
from service.pipeline import Networks
from tests.e2e.chromium import WIDTH, Visit, visiting
from tests.service.serving import RunningServer

with suppress(ImportError):  # the fixture `browser` says so
    from playwright.sync_api import Browser, expect

NAME_OF_FOCUS = """() => {
  const { ariaLabel, labels, textContent } = document.activeElement;
  return ariaLabel ?? labels?.[0]?.textContent ?? textContent;
}"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def answer(server: RunningServer, portrait_jpeg: bytes) -> dict[str, Any]:
    """What the service says of the portrait, evidence for anger included."""
    with server.client() as client:
        options = {"explain": "evidence", "class": "anger"}
        reply = client.post("/predict", params=options, files={"file": portrait_jpeg})
    parsed: dict[str, Any] = reply.json()
    return parsed


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picked_photo_is_outlined_and_described(
    visit: Visit, portrait_jpeg: bytes, answer: dict[str, Any]
) -> None:
    visit.pick(("portrait.jpg", portrait_jpeg))
    page, face = visit.page, answer["faces"][0]
    expression = face["expression"]
    expect(page.locator(".answer")).to_contain_text(expression["label"].capitalize())
    assert page.locator(".bars li").count() == len(expression["probabilities"])
    expect(page.locator(".bars .best")).to_contain_text(expression["label"])
    expect(page.locator(".warning")).to_be_hidden()
    expect(page.locator("#status")).to_contain_text(f"portrait.jpg: 1 face: {expression['label']}")
    stage, box = page.locator(".stage").bounding_box(), page.locator(".box").bounding_box()
    assert stage is not None
    assert box is not None
    scale = stage["width"] / answer["image"]["width"]
    assert stage["height"] == pytest.approx(answer["image"]["height"] * scale, abs=1)
    assert box["x"] - stage["x"] == pytest.approx(face["box"]["x1"] * scale, abs=1)
    assert box["y"] - stage["y"] == pytest.approx(face["box"]["y1"] * scale, abs=1)
    assert box["width"] == pytest.approx((face["box"]["x2"] - face["box"]["x1"]) * scale, abs=1)
    visit.screenshot("photo")


def test_dropped_and_pasted_photos_stand_side_by_side(visit: Visit, portrait_jpeg: bytes) -> None:
    visit.hand_over("drop", [portrait_jpeg, portrait_jpeg])
    visit.hand_over("paste", [portrait_jpeg])
    cards = visit.page.locator(".card")
    expect(visit.page.locator(".answer")).to_have_count(3)
    expect(cards).to_have_count(3)
    tops = [cards.nth(i).evaluate("card => card.offsetTop") for i in range(3)]
    assert len(set(tops)) == 1
    assert visit.most_in_flight() == 1
    cards.nth(1).get_by_role("button", name="Remove").click()
    expect(cards).to_have_count(2)
    expect(cards.nth(1).get_by_role("button", name="Remove")).to_be_focused()


def test_a_paste_without_a_file_is_explained(visit: Visit) -> None:
    visit.hand_over("paste", [])
    expect(visit.page.locator("#trouble")).to_contain_text("no photo in it")
    expect(visit.page.locator("#model")).not_to_be_empty()
    expect(visit.page.locator("#trouble")).to_contain_text("no photo in it")


def test_a_bar_shows_the_evidence_for_its_expression(
    visit: Visit, portrait_jpeg: bytes, answer: dict[str, Any]
) -> None:
    visit.pick(("portrait.jpg", portrait_jpeg))
    heat = visit.page.locator(".drawing image")
    attention = heat.get_attribute("href")
    anger = visit.page.get_by_role("button", name="anger")
    anger.focus()
    visit.page.keyboard.press("Enter")
    logit = f"{answer['faces'][0]['evidence']['logit']:.2f}".replace("-", "−")
    expect(visit.page.locator(".legend")).to_contain_text("Evidence for anger")
    expect(visit.page.locator(".legend")).to_contain_text(logit)
    expect(anger).to_have_attribute("aria-pressed", "true")
    expect(anger).to_be_focused()
    assert visit.asked == ["", "explain=evidence&class=anger"]
    assert heat.get_attribute("href") != attention
    visit.screenshot("evidence")
    visit.page.get_by_label("Attention").check()
    expect(heat).to_have_attribute("href", str(attention))
    assert len(visit.asked) == 2  # the first answer was kept


def test_the_map_lies_where_the_crop_was_cut(
    visit: Visit, networks: Networks, portrait_jpeg: bytes, answer: dict[str, Any]
) -> None:
    visit.pick(("portrait.jpg", portrait_jpeg))
    transform = visit.page.locator(".drawing image").get_attribute("transform")
    assert transform is not None
    a, b, c, d, e, f = map(float, transform.removeprefix("matrix(").rstrip(")").split())
    contract = networks.classifier.contract
    landmarks = list(answer["faces"][0]["landmarks"].values())
    forth = similarity_transform(landmarks, contract.template)
    back = cv2.invertAffineTransform(forth)
    size = contract.input_size
    # Edges of the crop, half a pixel from the centres of its outermost pixels.
    corners = np.array([(0, 0, 1), (size, 0, 1), (0, size, 1)])
    shown = corners @ np.array([(a, c, e), (b, d, f)]).T
    cut = (corners - (0.5, 0.5, 0)) @ back.T + 0.5
    np.testing.assert_allclose(shown, cut, atol=1e-3)


def test_the_slider_and_nothing_hide_the_map(visit: Visit, portrait_jpeg: bytes) -> None:
    visit.pick(("portrait.jpg", portrait_jpeg))
    heat = visit.page.locator(".drawing image")
    visit.page.get_by_label("Opacity").fill("30")
    expect(heat).to_have_attribute("opacity", "0.3")
    visit.page.get_by_label("Nothing").check()
    expect(heat).to_be_hidden()
    expect(visit.page.get_by_label("Opacity")).to_be_hidden()


def test_a_face_of_several_is_chosen_by_its_button_or_its_outline(
    visit: Visit, portrait: NDArray[np.uint8]
) -> None:
    visit.pick(("two.png", png(np.hstack((portrait, portrait[:, ::-1])))))
    chips, boxes = visit.page.locator(".chip"), visit.page.locator(".box")
    expect(chips).to_have_count(2)
    chips.nth(1).click()
    expect(chips.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(boxes.nth(1)).to_have_class("box selected")
    boxes.nth(0).click()
    expect(chips.nth(0)).to_have_attribute("aria-pressed", "true")


def test_a_tiny_face_is_not_to_be_relied_on(visit: Visit, portrait: NDArray[np.uint8]) -> None:
    small = cv2.resize(portrait, (150, 150), interpolation=cv2.INTER_AREA)
    visit.pick(("small.png", png(np.asarray(small, np.uint8))))
    expect(visit.page.locator(".warning")).to_contain_text("Do not rely on this answer: the face")


@pytest.mark.parametrize(
    ("pose", "sharpness", "confidence", "words"),
    [
        ((0, 0, 60), 0.01, 0.6, ""),
        ((-46, 0, 0), 0.01, 0.9, "Do not rely on this answer: the head is turned far to the side."),
        ((0, 50, 0), 0.01, 0.4, "Do not rely on this answer: the head is tilted far down and no"),
        ((0, 0, -61), 0.01, 0.9, "Do not rely on this answer: the head leans far."),
        ((0, 0, 0), 0.0019, 0.9, "Do not rely on this answer: the face is blurred."),
    ],
)
def test_what_speaks_against_an_answer_is_said(
    visit: Visit, pose: tuple[int, int, int], sharpness: float, confidence: float, words: str
) -> None:
    face = {
        "box": {"x1": 0, "y1": 0, "x2": 40, "y2": 50},
        "head_pose": dict(zip(("yaw", "pitch", "roll"), pose, strict=True)),
        "sharpness": sharpness,
        "expression": {"label": "fear", "confidence": confidence},
    }
    script = "face => import('/web/words.js').then(({ warning }) => warning(face))"
    said = visit.page.evaluate(script, face)
    assert said.startswith(words)
    assert bool(said) == bool(words)


def test_a_blurred_face_is_not_to_be_relied_on(visit: Visit, portrait: NDArray[np.uint8]) -> None:
    soft = cv2.GaussianBlur(portrait, (0, 0), 6)
    visit.pick(("soft.png", png(np.asarray(soft, np.uint8))))
    expect(visit.page.locator(".warning")).to_contain_text("the face is blurred")
    visit.screenshot("blurred")


def test_the_close_up_is_the_crop(
    visit: Visit, networks: Networks, portrait_jpeg: bytes, answer: dict[str, Any]
) -> None:
    # The very file that `answer` is of: the landmarks of another encoding lie half a pixel away.
    visit.pick(("portrait.jpg", portrait_jpeg))
    photo = np.asarray(Image.open(io.BytesIO(portrait_jpeg)))
    visit.page.get_by_label("Nothing").check()
    address = visit.page.locator(".close-up").evaluate("canvas => canvas.toDataURL()")
    shown = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
    contract = networks.classifier.contract
    landmarks = list(answer["faces"][0]["landmarks"].values())
    matrix = similarity_transform(landmarks, contract.template)
    crop = warp_crop(photo, matrix, contract.input_size)
    small = np.asarray(
        shown.resize((contract.input_size, contract.input_size), Image.Resampling.BOX)
    )
    # Two ways of sampling the same pixels; shifted by a pixel they differ by more than twice this.
    assert np.abs(small.astype(float) - crop).mean() < 3


def test_a_photo_without_a_face_says_so(visit: Visit) -> None:
    visit.pick(("empty.png", png(np.full((200, 300, 3), 90, np.uint8))))
    expect(visit.page.locator(".answer")).to_contain_text("No face was found.")
    expect(visit.page.locator(".bars")).to_be_hidden()


def test_json_and_curl_are_those_of_the_answer(
    visit: Visit, server: RunningServer, portrait_jpeg: bytes, tmp_path: Path
) -> None:
    name = """it's a "quoted", odd; name.jpg"""
    visit.pick((name, portrait_jpeg))
    visit.page.get_by_role("button", name="anger").click()
    expect(visit.page.locator(".legend")).to_contain_text("logit")
    visit.page.get_by_text("JSON and curl").click()
    expect(visit.page.locator("pre").nth(1)).to_contain_text('"evidence"')
    line, shown = (visit.page.locator("pre").nth(i).inner_text() for i in range(2))
    command, option, form, address = shlex.split(line)
    assert (command, option) == ("curl", "--form")
    assert json.loads(form.removeprefix("file=@")) == name  # quoted as curl wants it
    with server.client() as client:
        reply = client.post(address, files={"file": portrait_jpeg}).json()
    assert json.loads(shown)["faces"] == reply["faces"]
    assert reply["faces"][0]["evidence"]["class"] == "anger"


def test_the_webcam_is_read_one_frame_at_a_time(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Use the webcam").click()
    expect(visit.page.locator(".answer")).to_contain_text("Happiness")
    visit.page.get_by_role("button", name="surprise").click()
    expect(visit.page.locator(".legend")).to_contain_text("Evidence for surprise")
    expect(visit.page.locator(".legend")).to_contain_text("logit")
    with visit.page.expect_request("**/predict*"):
        visit.screenshot("webcam")
    visit.page.get_by_role("button", name="Stop the webcam").click()
    expect(visit.page.locator(".card")).to_have_count(0)
    expect(visit.page.get_by_role("button", name="Use the webcam")).to_be_enabled()
    assert len(visit.asked) > 2
    assert visit.most_in_flight() == 1


def test_the_keyboard_reaches_everything(visit: Visit, portrait: NDArray[np.uint8]) -> None:
    visit.pick(("two.png", png(np.hstack((portrait, portrait[:, ::-1])))))
    page, reached = visit.page, [""]
    page.locator("#pick").focus()
    while reached[-1] != "API documentation":
        reached.append(page.evaluate(NAME_OF_FOCUS))
        assert len(reached) < 40, reached
        page.keyboard.press("Tab")
    bars = [name for name in reached if name.startswith(("neutral", "happiness", "contempt"))]
    assert len(bars) == 3
    for name in ("Choose photos", "Use the webcam", "Remove two.png", "Attention", "Opacity"):
        assert name in reached
    assert {name[:2] for name in reached} >= {"1 ", "2 "}  # the faces
    assert "JSON and curl" in reached
    page.get_by_label("Attention").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".drawing image")).to_be_hidden()


@pytest.mark.parametrize(("dark", "width"), [(False, WIDTH), (True, WIDTH), (True, 360)])
def test_everybody_can_use_it(
    browser: Browser, server: RunningServer, portrait_jpeg: bytes, dark: bool, width: int
) -> None:
    """axe-core finds nothing to complain of, and nothing is wider than the screen."""
    with visiting(browser, server.url, dark=dark, width=width) as visit:
        visit.pick(("portrait.jpg", portrait_jpeg), ("text.jpg", b"This is a text."))
        visit.page.get_by_text("JSON and curl").click()
        visit.page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text())
        found = visit.page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
        assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        visit.screenshot(f"{'dark' if dark else 'light'}-{width}")
