"""The page in a real Chromium, against a real server.

Skips with the reason where Playwright or Chromium is not there; with REQUIRE_BROWSER=1 that is a
failure. Screenshots go to $PAGE_SCREENSHOTS, for people to look at.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
import threading
from collections.abc import Iterator
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.errors import StartupError
from service.faces.alignment import similarity_transform, warp_crop
from service.pipeline import Networks
from service.settings import Settings
from tests.e2e.chromium import WIDTH, Visit, chromium, visiting
from tests.service.serving import RunningServer, Serve, starting, wait_until

with suppress(ImportError):  # the fixture `browser` says so
    from playwright.sync_api import Browser, expect

TEXT = b"This is a text."
KEY = "0123456789abcdef"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(
    portrait: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    """Chromium, with the portrait before its webcam."""
    film = tmp_path_factory.mktemp("webcam") / "portrait.y4m"
    height, width = portrait.shape[:2]
    frame = cv2.cvtColor(portrait, cv2.COLOR_RGB2YUV_I420).tobytes()
    head = f"YUV4MPEG2 W{width} H{height} F10:1 Ip A1:1 C420\n".encode()
    film.write_bytes(head + 2 * (b"FRAME\n" + frame))
    with chromium(film) as started:
        yield started


@pytest.fixture
def visit(browser: Browser, server: RunningServer) -> Iterator[Visit]:
    with visiting(browser, server.url) as opened:
        yield opened


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
        ((0, 0, 80), 0.01, 0.6, ""),
        ((-46, 0, 0), 0.01, 0.9, "Do not rely on this answer: the head is turned far to the side."),
        ((0, 50, 0), 0.01, 0.4, "Do not rely on this answer: the head is tilted far down and no"),
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
    soft = cv2.GaussianBlur(portrait, (0, 0), 5)
    visit.pick(("soft.png", png(np.asarray(soft, np.uint8))))
    expect(visit.page.locator(".warning")).to_contain_text("the face is blurred")
    visit.screenshot("blurred")


def test_the_close_up_is_the_crop(
    visit: Visit, networks: Networks, portrait: NDArray[np.uint8], answer: dict[str, Any]
) -> None:
    visit.pick(("portrait.png", png(portrait)))
    visit.page.get_by_label("Nothing").check()
    address = visit.page.locator(".close-up").evaluate("canvas => canvas.toDataURL()")
    shown = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
    contract = networks.classifier.contract
    landmarks = list(answer["faces"][0]["landmarks"].values())
    matrix = similarity_transform(landmarks, contract.template)
    crop = warp_crop(portrait, matrix, contract.input_size)
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


def test_problems_of_a_photo_are_said_in_words(visit: Visit, portrait_jpeg: bytes) -> None:
    visit.pick(("text.jpg", TEXT), ("broken.jpg", portrait_jpeg[:3000]), ("none.jpg", b""))
    problems = visit.page.locator(".card .problem")
    expect(problems.nth(0)).to_contain_text("This is no picture the service can read. The bytes")
    expect(problems.nth(1)).to_contain_text("The picture is broken or cut off.")
    expect(problems.nth(2)).to_contain_text("The file is empty.")
    expect(visit.page.get_by_role("button", name="Try again")).to_have_count(0)


def test_a_busy_service_is_tried_again_when_it_says_so(
    browser: Browser, serve: Serve, portrait_jpeg: bytes
) -> None:
    busy = serve(max_in_flight_images=1)
    with visiting(browser, busy.url) as visit:
        expect(visit.page.locator("#model")).not_to_be_empty()
        with busy.state.lifecycle.admit_image():
            visit.hand_over("drop", [portrait_jpeg])
            waiting = visit.page.locator(".waiting")
            expect(waiting).to_contain_text("The service is busy. 1 images are in flight")
            expect(waiting).to_contain_text("Trying again in 1 s.")
        expect(visit.page.locator(".answer")).to_contain_text("Happiness")


def test_an_answer_that_took_too_long_can_be_asked_for_again(
    browser: Browser, serve: Serve, portrait_jpeg: bytes
) -> None:
    with visiting(browser, serve(deadline_ms=1).url) as visit:
        visit.pick(("portrait.jpg", portrait_jpeg))
        expect(visit.page.locator(".card .problem")).to_contain_text("The answer took too long.")
        visit.page.get_by_role("button", name="Try again").click()
        expect(visit.page.locator(".waiting")).to_be_hidden()
        assert len(visit.asked) == 2


def test_an_api_key_is_asked_for_and_its_limit_said(
    browser: Browser, serve: Serve, portrait_jpeg: bytes
) -> None:
    guarded = serve(api_keys=f"page={KEY}", rate_limit="1/year")
    with visiting(browser, guarded.url) as visit:
        page, key = visit.page, visit.page.get_by_label("API key")
        trouble = page.locator("#service-trouble")
        expect(trouble).to_contain_text("This service asks for an API key")
        visit.hand_over("drop", [portrait_jpeg])
        visit.screenshot("key")
        key.fill("wrong" + KEY)
        key.press("Enter")
        expect(trouble).to_contain_text("The service does not know this API key.")
        key.fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator(".answer")).to_contain_text("Happiness")
        expect(key).to_be_hidden()
        page.get_by_text("JSON and curl").click()
        expect(page.locator("pre").first).to_contain_text('--header "X-API-Key: $API_KEY"')
        visit.hand_over("paste", [portrait_jpeg])
        problem = page.locator(".card .problem")
        expect(problem).to_contain_text("This API key has been used as often as it may for now.")
        expect(problem).to_contain_text("It may work in ")
        assert KEY not in page.content()


def test_a_starting_service_is_waited_for(browser: Browser, networks: Networks) -> None:
    gate = threading.Event()

    def load(_: Settings) -> Networks:
        gate.wait()
        return networks

    failures: list[StartupError | None] = []
    with starting(Settings(), load, failures.append) as server:
        try:
            with visiting(browser, server.url) as visit:
                trouble = visit.page.locator("#service-trouble")
                expect(trouble).to_contain_text("The service is not ready. The service is starting")
                expect(trouble).to_contain_text("Trying again in 1 s.")
                gate.set()
                expect(trouble).to_be_empty()
                name = networks.classifier.contract.name
                expect(visit.page.locator("#model")).to_contain_text(name)
                wait_until(lambda: bool(failures))
        finally:
            gate.set()
    assert failures == [None]


def test_the_webcam_is_read_one_frame_at_a_time(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Use the webcam").click()
    expect(visit.page.locator(".answer")).to_contain_text("Happiness")
    visit.page.get_by_role("button", name="surprise").click()
    expect(visit.page.locator(".legend")).to_contain_text("Evidence for surprise")
    expect(visit.page.locator(".legend")).to_contain_text("logit")
    visit.screenshot("webcam")
    visit.page.get_by_role("button", name="Stop the webcam").click()
    expect(visit.page.locator(".card")).to_have_count(0)
    expect(visit.page.get_by_role("button", name="Use the webcam")).to_be_enabled()
    assert len(visit.asked) > 2
    assert visit.most_in_flight() == 1


@pytest.mark.parametrize(("dark", "width"), [(False, WIDTH), (True, WIDTH), (True, 360)])
def test_everybody_can_use_it(
    browser: Browser, server: RunningServer, portrait_jpeg: bytes, dark: bool, width: int
) -> None:
    """axe-core finds nothing to complain of, and nothing is wider than the screen."""
    with visiting(browser, server.url, dark=dark, width=width) as visit:
        visit.pick(("portrait.jpg", portrait_jpeg), ("text.jpg", TEXT))
        visit.page.get_by_text("JSON and curl").click()
        visit.page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text())
        found = visit.page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
        assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        visit.screenshot(f"{'dark' if dark else 'light'}-{width}")
