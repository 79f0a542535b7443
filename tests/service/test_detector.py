"""RetinaFace on a real photo: sizes, borders, many faces, none."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from service.errors import ModelContractError
from service.faces.detector import (
    MAX_CANDIDATES,
    FaceDetector,
    RawDetections,
    UInt8,
    anchors,
    decode,
    in_image_frame,
    merge,
    network_input,
    place,
)
from service.faces.face import Face, longer_side
from service.faces.looks import (
    CANVAS_SIZES,
    FIRST_DOUBT_SCORE,
    MAX_ENLARGEMENT,
    Found,
    Look,
    Round,
    fitting_canvas,
    plan_rounds,
)
from service.runtime import SessionSettings

MODELS = Path(__file__).parents[2] / "models"
CPU = SessionSettings("cpu")
# Of the astronaut's photo (512 x 512), read off by eye.
FACE_BOX = np.array((180, 60, 270, 190))
NOSE = (224, 127)


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector.load(MODELS / "retinaface_mnet025.onnx", CPU)


@pytest.fixture(scope="module")
def astronaut() -> UInt8:
    return np.asarray(skimage.data.astronaut(), np.uint8)


def resized(image: UInt8, factor: float) -> UInt8:
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)


def assert_face_at(face: Face, nose: tuple[float, float], eye_distance: float) -> None:
    """The nose within a quarter of the eye distance, the box around it, points in order."""
    assert math.dist(face.landmarks[2], nose) < eye_distance / 4
    x1, y1, x2, y2 = face.box
    assert x1 < nose[0] < x2
    assert y1 < nose[1] < y2
    left_eye, right_eye, _, mouth_left, mouth_right = face.landmarks
    assert left_eye[0] < right_eye[0]
    assert mouth_left[0] < mouth_right[0]
    assert left_eye[1] < mouth_left[1]


def test_a_threshold_of_zero_does_not_take_every_anchor_for_a_face() -> None:
    canvas, rng = (320, 320), np.random.default_rng(0)
    count = len(anchors(canvas))
    raw = RawDetections(
        np.zeros((count, 4), np.float32),
        rng.random(count, dtype=np.float32),
        np.zeros((count, 10), np.float32),
    )
    look = Look(canvas, 1.0, 0.7)
    found = decode(raw, look, min_score=0.0)
    assert 0 < len(found.faces) <= MAX_CANDIDATES
    # The best ones are kept.
    assert max(face.score for face in found.faces) == raw.scores.max()


def test_less_is_asked_of_a_small_doubt_than_of_a_large_one() -> None:
    canvas = (192, 256)
    cells = anchors(canvas)
    scores = np.zeros(len(cells), np.float32)
    small, large = ((cells[:, 2] == side).nonzero()[0][0] for side in (16, 128))
    scores[[small, large]] = 0.07
    raw = RawDetections(
        np.zeros((len(cells), 4), np.float32), scores, np.zeros((len(cells), 10), np.float32)
    )
    look = Look(canvas, 0.4, 0.7, doubt_score=FIRST_DOUBT_SCORE)
    assert [longer_side(doubt) for doubt in decode(raw, look).doubts or ()] == [16]
    scores[large] = 0.1
    assert [longer_side(doubt) for doubt in decode(raw, look).doubts or ()] == [128, 16]


def test_a_box_or_landmarks_that_are_no_numbers_are_no_face() -> None:
    canvas = (192, 256)
    count = len(anchors(canvas))
    offsets, landmarks = (np.zeros((count, values), np.float32) for values in (4, 10))
    scores = np.zeros(count, np.float32)
    scores[[0, 700]] = 0.95, 0.9
    offsets[0] = np.nan
    look = Look(canvas, 1.0, 0.7, doubt_score=FIRST_DOUBT_SCORE)
    found = decode(RawDetections(offsets, scores, landmarks), look)
    assert [face.score for face in found.faces] == [pytest.approx(0.9)]
    landmarks[700] = np.linspace(-1, 1, 10)
    placement = place(np.zeros((192, 256, 3), np.uint8), look)
    sound = decode(RawDetections(offsets, scores, landmarks), look)
    assert len(in_image_frame(sound, placement).faces) == 1
    landmarks[700, 3] = np.nan
    broken = decode(RawDetections(offsets, scores, landmarks), look)
    assert in_image_frame(broken, placement).faces == ()


def test_parts_of_a_known_face_are_left_out() -> None:
    def boxed(*box: float) -> Face:
        return Face(np.array(box, np.float32), np.zeros((5, 2), np.float32), 0.9)

    known = boxed(0, 0, 100, 100)
    eye, beside = boxed(20, 20, 50, 50), boxed(200, 0, 230, 30)
    faces = merge(Found((known,)), [Found((eye, beside))]).faces
    assert [face.box[0] for face in faces] == [0, 200]


@pytest.mark.parametrize("face_pixels", [24, 48, 130, 600, 2000])
def test_a_face_is_found_at_every_size(
    detector: FaceDetector, astronaut: UInt8, face_pixels: int
) -> None:
    factor = face_pixels / (FACE_BOX[3] - FACE_BOX[1])
    (face,) = detector.detect(resized(astronaut, factor))
    assert_face_at(face, (NOSE[0] * factor, NOSE[1] * factor), 40 * factor)


@pytest.mark.parametrize("size", [24, 48, 96, 300, 1000])
def test_a_face_that_fills_the_frame_is_found(
    detector: FaceDetector, astronaut: UInt8, size: int
) -> None:
    x1, y1, x2, y2 = 170, 60, 290, 180
    image = np.ascontiguousarray(astronaut[y1:y2, x1:x2])
    factor = size / image.shape[0]
    faces = detector.detect(resized(image, factor))
    assert_face_at(faces[0], ((NOSE[0] - x1) * factor, (NOSE[1] - y1) * factor), 40 * factor)


@pytest.mark.parametrize("cut", ["left", "top"])
def test_a_face_cut_by_the_border_keeps_its_box_inside(
    detector: FaceDetector, astronaut: UInt8, cut: str
) -> None:
    x, y = (205, 0) if cut == "left" else (0, 85)
    image = np.ascontiguousarray(astronaut[y:, x:])
    face = detector.detect(image)[0]
    height, width = image.shape[:2]
    assert_face_at(face, (NOSE[0] - x, NOSE[1] - y), 40)
    assert (face.box >= 0).all()
    assert (face.box <= (width, height, width, height)).all()


def test_every_face_of_a_group_is_found_largest_first(
    detector: FaceDetector, astronaut: UInt8
) -> None:
    portrait = astronaut[30:230, 120:340]
    image = np.full((1100, 1600, 3), 128, np.uint8)
    noses = []
    for index, factor in enumerate((0.3, 0.5, 0.8, 1.0, 1.3, 1.5, 0.4, 0.6)):
        x, y = (index % 4) * 400, (index // 4) * 550
        tile = resized(np.ascontiguousarray(portrait), factor)
        image[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        noses.append((x + (NOSE[0] - 120) * factor, y + (NOSE[1] - 30) * factor))
    faces = detector.detect(image)
    assert len(faces) == 8
    areas = [(f.box[2] - f.box[0]) * (f.box[3] - f.box[1]) for f in faces]
    assert areas == sorted(areas, reverse=True)
    for nose in noses:
        nearest = min(faces, key=lambda f: math.dist(f.landmarks[2], nose))
        assert math.dist(nearest.landmarks[2], nose) < 15


@pytest.mark.parametrize(
    ("size", "face_pixels"),
    [((480, 640), 24), ((960, 1280), 24), ((1080, 1920), 24), ((3000, 4000), 60)],
)
def test_small_faces_are_found_in_large_photos(
    detector: FaceDetector, astronaut: UInt8, size: tuple[int, int], face_pixels: int
) -> None:
    """`face_pixels` is the height of the face."""
    height, width = size
    scene = cv2.resize(skimage.data.coffee(), (width, height), interpolation=cv2.INTER_CUBIC)
    small = resized(np.ascontiguousarray(astronaut[:300, 80:380]), face_pixels / 120)
    scene[: small.shape[0], : small.shape[1]] = small
    nose = ((NOSE[0] - 80) * face_pixels / 120, NOSE[1] * face_pixels / 120)
    assert_face_at(detector.detect(scene)[-1], nose, face_pixels / 3)


@pytest.mark.parametrize("photo", ["coffee", "rocket", "chelsea", "brick", "coins", "moon"])
def test_no_face_where_there_is_none(detector: FaceDetector, photo: str) -> None:
    image = np.asarray(getattr(skimage.data, photo)(), np.uint8)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    assert detector.detect(image) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (3000, 2), (17, 31)])
def test_odd_shapes_do_no_harm(detector: FaceDetector, shape: tuple[int, int]) -> None:
    assert detector.detect(np.full((*shape, 3), 90, np.uint8)) == []


def test_a_dark_photo_still_has_its_face(detector: FaceDetector, astronaut: UInt8) -> None:
    dark = (astronaut * 0.15).astype(np.uint8)
    assert_face_at(detector.detect(dark)[0], NOSE, 40)


def test_colour_order_matters(detector: FaceDetector, astronaut: UInt8) -> None:
    scores = [
        detector.detect(np.ascontiguousarray(a))[0].score for a in (astronaut, astronaut[..., ::-1])
    ]
    assert scores[0] != scores[1]


def test_a_batch_gives_what_single_runs_give(detector: FaceDetector, astronaut: UInt8) -> None:
    images = [astronaut, np.ascontiguousarray(astronaut[:, ::-1]), astronaut // 2]
    placements = [place(image, Look((320, 320), 0.6, 0.7)) for image in images]
    for placement, found in zip(placements, detector.find(placements), strict=True):
        (alone,) = detector.find([placement])
        assert found.faces[0].score == pytest.approx(alone.faces[0].score, abs=1e-5)
        np.testing.assert_allclose(found.faces[0].landmarks, alone.faces[0].landmarks, atol=1e-2)


@pytest.mark.parametrize(
    "size", [(1, 1), (48, 48), (480, 640), (1080, 1920), (7000, 4700), (9, 8000)]
)
def test_every_look_fits_its_canvas(size: tuple[int, int]) -> None:
    looks = [k for turn in plan_rounds(*size) if isinstance(turn, Round) for k in turn.looks]
    for look in looks:
        assert look.canvas in CANVAS_SIZES
        x1, y1, x2, y2 = look.region or (0, 0, size[1], size[0])
        assert max(y2 - y1, x2 - x1) * look.scale <= max(look.canvas) + 1
        placement = place(np.zeros((*size, 3), np.uint8), look)
        assert placement.pixels.shape == (*look.canvas, 3)
    assert looks[0].scale <= MAX_ENLARGEMENT


def test_placing_keeps_the_aspect_ratio_and_repeats_the_border() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, :100] = 255
    placement = place(image, Look((320, 320), 1.0, 0.5))
    assert placement.offset == (60, 110)
    assert (placement.pixels[:, :155] == 255).all()
    assert (placement.pixels[:, 165:] == 0).all()


def test_a_canvas_may_be_a_part_of_the_photo_itself() -> None:
    photo = np.random.default_rng(1).integers(0, 256, (400, 600, 3), np.uint8)
    look = Look((320, 320), 1.0, 0.7, region=(50, 40, 370, 360))
    pixels = place(photo, look).pixels
    np.testing.assert_array_equal(pixels, photo[40:360, 50:370])
    expected = network_input([np.ascontiguousarray(pixels)])
    np.testing.assert_array_equal(network_input([pixels]), expected)


def test_the_smallest_canvas_that_fits_is_taken() -> None:
    assert fitting_canvas(320, 300) == (320, 320)
    assert fitting_canvas(480, 640) == (480, 640)
    assert fitting_canvas(641, 480) == (704, 544)
    assert fitting_canvas(1500, 2000) in ((544, 704), (480, 640))
    assert fitting_canvas(5000, 5000) == (640, 640)


@pytest.mark.parametrize("canvas", CANVAS_SIZES)
def test_anchors_match_the_network(detector: FaceDetector, canvas: tuple[int, int]) -> None:
    blank = place(np.zeros((*canvas, 3), np.uint8), Look(canvas, 1.0, 0.5))
    (raw,) = detector.infer([blank])
    assert anchors(canvas).shape == (len(raw.scores), 3)


def test_another_network_is_refused() -> None:
    with pytest.raises(ModelContractError, match=r"expected input 'input' and outputs 'loc'"):
        FaceDetector.load(MODELS / "lan_mobilefacenet_ferplus.onnx", CPU)
