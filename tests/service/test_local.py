from __future__ import annotations

import gc
import itertools
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service import PredictOptions, PredictReply, Recognizer
from service.errors import (
    ImageFileError,
    ImageTooLargeError,
    InvalidOptionError,
    ModelFileError,
    PayloadTooLargeError,
    ProblemError,
    RequestError,
    ServiceError,
    SettingsError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from service.local import Photo
from service.pipeline import Networks, Task
from service.settings import Settings, load_settings
from tests.service.image_files import encoded, exif

UInt8 = NDArray[np.uint8]
TOLERANCE = 1e-3  # a batch's arithmetic differs from a lone photo's in the last bits


@pytest.fixture(scope="module")
def recognizer(networks: Networks) -> Iterator[Recognizer]:
    with Recognizer(networks, Settings()) as own:
        yield own


def comparable(reply: PredictReply) -> dict[str, object]:
    return reply.model_dump(exclude={"request_id", "timings_ms"})


def test_answer_is_the_services(
    recognizer: Recognizer, client: httpx.Client, portrait_jpeg: bytes
) -> None:
    response = client.post(
        "/predict", content=portrait_jpeg, headers={"content-type": "image/jpeg"}
    )
    reply = recognizer.predict(portrait_jpeg)
    assert comparable(reply) == comparable(PredictReply.model_validate(response.json()))
    assert reply.request_id != recognizer.predict(portrait_jpeg).request_id
    assert reply.timings_ms.total > 0


def test_every_form_of_photo_gives_the_same_faces(
    recognizer: Recognizer, portrait: UInt8, tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(portrait).save(path)
    data = path.read_bytes()
    with Image.open(path) as opened:
        forms: list[Photo] = [
            path,
            str(path),
            data,
            bytearray(data),
            memoryview(data),
            portrait,
            Image.fromarray(portrait),
            opened,
        ]
        replies = [recognizer.predict(form) for form in forms]
    assert len(replies[0].faces) == 1
    for reply in replies[1:]:
        assert reply.faces == replies[0].faces
    assert [reply.image.format for reply in replies[-3:]] == ["RAW", "RAW", "PNG"]


def test_arrays_are_rgb(recognizer: Recognizer, portrait: UInt8) -> None:
    (rgb,), (bgr,) = (recognizer.predict(p).faces for p in (portrait, portrait[..., ::-1]))
    assert rgb.attention != bgr.attention


def test_pillow_image_is_turned_upright(recognizer: Recognizer, portrait: UInt8) -> None:
    stored = Image.fromarray(np.rot90(portrait[:, 60:], 1))
    stored.getexif()[0x0112] = 6
    turned, upright = recognizer.predict(stored), recognizer.predict(portrait[:, 60:])
    assert (turned.image.width, turned.image.height) == (452, 512)
    assert turned.faces == upright.faces
    data = encoded(Image.fromarray(np.rot90(portrait[:, 60:], 1)), "PNG", exif=exif(6))
    assert recognizer.predict(data).faces == upright.faces


def test_options_are_those_of_the_service(recognizer: Recognizer, portrait: UInt8) -> None:
    options = PredictOptions(explain="evidence", class_="anger", heatmap="overlay")
    evidence = recognizer.predict(portrait, options).faces[0].evidence
    assert evidence is not None
    assert evidence.class_ == "anger"
    assert evidence.overlay is not None
    assert recognizer.predict(portrait, PredictOptions(min_score=1)).faces == []
    for wrong in (PredictOptions(class_="anger"), PredictOptions(max_faces=999)):
        with pytest.raises(InvalidOptionError):
            recognizer.predict(portrait, wrong)


def test_draws_on_a_copy(recognizer: Recognizer, portrait: UInt8) -> None:
    before = portrait.copy()
    drawn = recognizer.draw(portrait)
    assert drawn.shape == portrait.shape
    assert np.array_equal(portrait, before)
    assert not np.array_equal(drawn[50:190, 170:280], portrait[50:190, 170:280])
    assert np.array_equal(drawn[300:], portrait[300:])


def moved(portrait: UInt8, step: int) -> UInt8:
    """A photo that no other step gives: the face sits somewhere else."""
    page = np.full((480, 640, 3), 128, np.uint8)
    page[step : step + 300, 15 * step : 15 * step + 300] = portrait[:300, 80:380]
    return page


def test_threads_get_their_own_answers(recognizer: Recognizer, portrait: UInt8) -> None:
    photos = [moved(portrait, step) for step in range(8)]
    alone = [recognizer.predict(photo) for photo in photos]
    with ThreadPoolExecutor(len(photos)) as crowd:
        together = list(crowd.map(recognizer.predict, photos))
    for one, other in zip(alone, together, strict=True):
        assert one.faces[0].box.x1 == pytest.approx(other.faces[0].box.x1, abs=0.5)
        assert one.faces[0].expression.probabilities == pytest.approx(
            other.faces[0].expression.probabilities, abs=TOLERANCE
        )


def test_more_callers_than_the_pipeline_takes_wait(networks: Networks, portrait: UInt8) -> None:
    with (
        Recognizer(networks, load_settings(max_in_flight_images=1)) as narrow,
        ThreadPoolExecutor(6) as crowd,
    ):
        replies = list(crowd.map(narrow.predict, [portrait] * 6))
    assert [len(reply.faces) for reply in replies] == [1] * 6


def test_many_keep_their_order_and_say_what_is_wrong(
    recognizer: Recognizer, portrait: UInt8, tmp_path: Path
) -> None:
    photos: list[Photo] = [moved(portrait, 3), b"no photo", tmp_path / "none.jpg", portrait]
    first, second, third, fourth = recognizer.predict_many(photos)
    assert isinstance(first, PredictReply)
    assert first.image.width == 640
    assert isinstance(second, UnsupportedMediaTypeError)
    assert isinstance(third, ImageFileError)
    assert third.detail.startswith(f"{tmp_path / 'none.jpg'}: ")
    assert "No such file" in third.detail
    assert isinstance(fourth, PredictReply)
    assert fourth.image.width == 512


def test_a_web_address_is_not_fetched(recognizer: Recognizer) -> None:
    address = "http://example.org/photo.jpg"
    with pytest.raises(ImageFileError) as caught:
        recognizer.predict(address)
    assert caught.value.detail == (
        f"{address}: A web address is not fetched; give a path, or the bytes of the image file."
    )


def test_many_takes_photos_as_it_goes(recognizer: Recognizer, portrait: UInt8) -> None:
    taken = itertools.count()
    endless = (portrait[: 400 + next(taken) % 2] for _ in itertools.count())
    assert len(list(itertools.islice(recognizer.predict_many(endless), 3))) == 3
    assert next(taken) < 40
    with pytest.raises(InvalidOptionError):
        next(recognizer.predict_many(endless, PredictOptions(class_="anger")))


@pytest.mark.parametrize(
    "alone",
    [
        "photo.jpg",
        Path("photo.jpg"),
        b"photo",
        bytearray(b"photo"),
        memoryview(b"photo"),
        Image.new("RGB", (8, 8)),
        np.zeros((8, 8, 3), np.uint8),
    ],
)
def test_many_refuses_one_photo_at_the_call(recognizer: Recognizer, alone: Photo) -> None:
    for read in (recognizer.predict_many, recognizer.answer_many):
        with pytest.raises(TypeError, match="a list of photos, not one alone"):
            read(alone)  # type: ignore[arg-type]


def test_many_takes_photos_of_one_array(recognizer: Recognizer, portrait: UInt8) -> None:
    replies = list(recognizer.predict_many(np.stack([portrait, portrait[:, ::-1]])))
    assert [reply.faces_found for reply in replies if isinstance(reply, PredictReply)] == [1, 1]


def test_options_of_another_type_are_refused(recognizer: Recognizer, portrait: UInt8) -> None:
    wrong: Any = "evidence"
    for read in (recognizer.predict, recognizer.draw):
        with pytest.raises(TypeError, match="options are a PredictOptions, not str"):
            read(portrait, wrong)
    with pytest.raises(TypeError, match="options are a PredictOptions, not str"):
        recognizer.predict_many([portrait], wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_array_of_another_kind_is_refused(recognizer: Recognizer, wrong: UInt8) -> None:
    with pytest.raises(ValueError, match=r"\[H,W,3\] uint8 RGB"):
        recognizer.predict(wrong)


def test_what_is_no_photo_is_refused(recognizer: Recognizer) -> None:
    with pytest.raises(TypeError, match="not list"):
        recognizer.predict([1, 2, 3])  # type: ignore[arg-type]


def test_limits_hold(networks: Networks, portrait: UInt8, tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    Image.fromarray(portrait).save(path)
    small = load_settings(max_body_bytes=2048, max_image_pixels=10_000)
    cases: list[tuple[Photo, type[ProblemError], str]] = [
        (path, PayloadTooLargeError, f"^{re.escape(str(path))}: "),
        (path.read_bytes(), PayloadTooLargeError, "at most 2048"),
        (Image.fromarray(portrait), ImageTooLargeError, "pixels"),
    ]
    with Recognizer(networks, small) as limited:
        for photo, expected, why in cases:
            with pytest.raises(expected, match=why):
                limited.predict(photo)


def test_load_reports_what_is_wrong() -> None:
    with pytest.raises(ModelFileError, match=r"no-such\.onnx"):
        Recognizer.load(model_path="no-such.onnx")
    with pytest.raises(SettingsError, match="max_faces"):
        Recognizer.load(max_faces=0)


def test_closed_recognizer_says_so(networks: Networks, portrait: UInt8) -> None:
    own = Recognizer(networks, Settings())
    answers = own.predict_many([portrait])
    own.close()
    own.close()
    with pytest.raises(RuntimeError, match="closed"):
        own.predict(portrait)
    with pytest.raises(RuntimeError, match="closed"):
        next(answers)


@pytest.mark.parametrize("seconds", [0.0, 0.03, 0.1])
def test_closing_while_many_are_read_ends_them(
    networks: Networks, portrait: UInt8, seconds: float
) -> None:
    recognizer = Recognizer(networks, Settings())
    answers = recognizer.predict_many([portrait] * 500)
    next(answers)
    closing = threading.Timer(seconds, recognizer.close)
    closing.start()
    read: list[object] = []
    with pytest.raises(RuntimeError, match="closed"):
        read.extend(answers)
    assert {type(answer) for answer in read} <= {PredictReply, UnavailableError}
    closing.join()
    recognizer.close()


def test_a_script_that_closes_nothing_ends(tmp_path: Path, portrait: UInt8) -> None:
    Image.fromarray(portrait).save(tmp_path / "photo.png")
    script = "import sys; from service import Recognizer; r = Recognizer.load(); "
    script += "print(r.predict(sys.argv[1]).faces[0].expression.label)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "photo.png")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "happiness\n", "")


def test_package_offers_what_it_lists() -> None:
    import service

    for name in service.__all__:
        assert getattr(service, name).__name__ == name
    assert service.ServiceError is ServiceError
    with pytest.raises(AttributeError, match="no attribute 'Reader'"):
        _ = service.Reader  # type: ignore[attr-defined]


def test_close_finishes_what_is_under_way(networks: Networks, portrait: UInt8) -> None:
    own = Recognizer(networks, Settings())
    photos = [np.ascontiguousarray(np.tile(portrait, (1, 3, 1))) for _ in range(8)]
    with ThreadPoolExecutor(len(photos)) as threads:
        running = [threads.submit(own.predict, photo) for photo in photos]
        deadline = time.monotonic() + 30
        while own._pipeline._in_hand < len(photos) and time.monotonic() < deadline:
            time.sleep(0.001)
        own.close()
    assert {reply.result().faces_found for reply in running} == {3}


@pytest.mark.parametrize("data", [b"no image at all", b"\x89PNG\r\n\x1a\n cut"])
def test_a_photo_that_cannot_be_read_is_let_go_with_its_error(
    recognizer: Recognizer, data: bytes
) -> None:
    """Kept by a frame that the error itself holds, it would stay until the next collection."""

    def is_kept() -> bool:
        return any(type(o) is Task and o.photo == data for o in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(RequestError):
            recognizer.predict(data)
        deadline = time.monotonic() + 10
        while is_kept() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_kept()
    finally:
        gc.enable()
