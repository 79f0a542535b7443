"""Boxes, dots, labels and heat land where they should, from thumbnails to large photos."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from service.drawing import FaceAnnotation, draw_faces

TEMPLATE = np.array([[38, 52], [74, 52], [56, 72], [42, 92], [71, 92]], np.float64)
CROP = 112
GREY = 120


def canvas(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), GREY, np.uint8)


def face(
    box: tuple[float, float, float, float],
    *,
    label: str = "happiness",
    heat: NDArray[np.float32] | None = None,
    signed: bool = False,
    turned: float = 0.0,
) -> FaceAnnotation:
    """A face whose crop is the square around its box, turned by some degrees."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    centre = ((left + right) / 2, (top + bottom) / 2)
    matrix = np.asarray(cv2.getRotationMatrix2D(centre, turned, CROP / side), np.float64)
    matrix[:, 2] += np.array([CROP / 2 - 0.5 - along for along in centre], np.float64)
    image_from_crop = np.asarray(cv2.invertAffineTransform(matrix), np.float64)
    landmarks = TEMPLATE @ image_from_crop[:, :2].T + image_from_crop[:, 2]
    return FaceAnnotation(
        box=np.array(box, np.float32),
        landmarks=landmarks.astype(np.float32),
        label=label,
        confidence=0.87,
        heat=heat,
        crop_from_image=matrix,
        crop_size=CROP,
        signed=signed,
    )


def changed(drawn: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.asarray((drawn != GREY).any(axis=2))


def heat_only(image: NDArray[np.uint8], annotation: FaceAnnotation) -> NDArray[np.float64]:
    """[H, W]: by how much the heat map alone changed each pixel."""
    plain = replace(annotation, heat=None)
    difference = draw_faces(image, [annotation]).astype(float) - draw_faces(image, [plain])
    return np.asarray(np.abs(difference).sum(axis=2))


def test_drawing_leaves_the_photo_itself_alone() -> None:
    image = canvas(200, 300)
    image.setflags(write=False)
    drawn = draw_faces(image, [face((100, 60, 180, 160), heat=np.ones((7, 7), np.float32))])
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (image == GREY).all()
    assert changed(drawn).any()


def test_no_face_is_a_plain_copy() -> None:
    image = canvas(40, 60)
    drawn = draw_faces(image, [])
    np.testing.assert_array_equal(drawn, image)
    assert not np.shares_memory(drawn, image)


@pytest.mark.parametrize("scale", [0.5, 1, 3, 8])
def test_the_box_is_a_frame_along_its_edges(scale: float) -> None:
    left, top, right, bottom = (round(value * scale) for value in (150, 100, 250, 220))
    drawn = draw_faces(
        canvas(round(300 * scale), round(400 * scale)), [face((left, top, right, bottom))]
    )
    marks = changed(drawn)
    middle = (top + bottom) // 2 + round(20 * scale)  # between the landmarks' rows
    for row, column in (
        (middle, left), (middle, right - 1), (bottom - 1, left + 2), (top, right - 2),
    ):  # fmt: skip
        assert marks[row, column]
    assert not marks[middle, left - 2]
    assert not marks[middle, right + 1]
    assert not marks[bottom - round(8 * scale), (left + right) // 2]


def test_landmarks_are_bright_dots_at_their_places() -> None:
    annotation = face((100, 100, 260, 300), turned=20)
    drawn = draw_faces(canvas(400, 400), [annotation])
    for x, y in np.rint(annotation.landmarks).astype(int):
        assert (drawn[y, x] > 240).all()


@pytest.mark.parametrize("turned", [0, 30, -75, 180])
@pytest.mark.parametrize("signed", [False, True])
def test_heat_returns_to_the_place_it_was_computed_from(turned: float, signed: bool) -> None:
    grid = np.zeros((7, 7), np.float32)
    grid[2, 4] = 1.0
    annotation = face((60, 80, 220, 240), heat=grid, signed=signed, turned=turned)
    difference = heat_only(canvas(320, 300), annotation)
    rows, columns = np.indices(difference.shape)
    centre = np.array([(columns * difference).sum(), (rows * difference).sum()]) / difference.sum()
    in_crop = annotation.crop_from_image @ [*centre, 1.0]
    np.testing.assert_allclose(in_crop, [4.5 * 16 - 0.5, 2.5 * 16 - 0.5], atol=1.0)


def test_heat_ends_softly_inside_the_square_of_the_crop() -> None:
    annotation = face((100, 100, 200, 200), heat=np.ones((7, 7), np.float32))
    difference = heat_only(canvas(300, 300), annotation)
    assert difference[:99].max() == 0
    assert difference[:, 202:].max() == 0
    profile = difference[115, 100:150]  # inwards, below the label and beside the landmarks
    assert profile[3] < 0.3 * profile[-1]
    assert np.abs(np.diff(profile[2:])).max() < 0.25 * profile[-1]


def test_a_large_face_is_painted_without_seams_between_strips() -> None:
    grid = np.full((7, 7), 0.8, np.float32)
    difference = heat_only(canvas(2400, 1400), face((50, 600, 1350, 1900), heat=grid))
    column = difference[900:1700, 300]
    assert np.ptp(column) == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (16, 16), (48, 48), (30, 2000)])
def test_any_picture_can_be_drawn_on(size: tuple[int, int]) -> None:
    height, width = size
    grid = np.ones((7, 7), np.float32)
    boxes = [
        (0, 0, width, height),
        (-5, -9, width + 4, height + 30),
        (width / 3, 0, width / 2, height),
    ]
    drawn = draw_faces(canvas(height, width), [face(box, heat=grid) for box in boxes])
    assert drawn.shape == (height, width, 3)


@pytest.mark.parametrize(
    "box",
    [
        (900, 900, 980, 1000),  # wholly outside
        (-200, -200, -100, -100),
        (50, 50, 50, 50),  # empty
    ],
)
def test_a_box_outside_or_without_area_draws_no_frame(
    box: tuple[float, float, float, float],
) -> None:
    annotation = replace(face((10, 10, 90, 90)), box=np.array(box, np.float32))
    drawn = draw_faces(canvas(100, 100), [annotation])
    assert not changed(drawn)[20:30, 20:80].any()


def test_a_mirrored_or_collapsed_transform_does_not_fail() -> None:
    grid = np.ones((7, 7), np.float32)
    whole = face((10, 10, 90, 90), heat=grid)
    for matrix in (np.zeros((2, 3)), np.array([[-1.0, 0, 100], [0, 1, 0]])):
        annotation = replace(whole, crop_from_image=matrix)
        assert draw_faces(canvas(100, 100), [annotation]).shape == (100, 100, 3)


# --- labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "box",
    [
        (200, 150, 300, 270),
        (0, 0, 100, 120),
        (540, 0, 640, 120),
        (0, 360, 100, 480),
        (540, 360, 640, 480),
        (0, 100, 300, 480),
        (-30, -40, 60, 80),
    ],
)
def test_a_label_is_written_beside_the_face_and_whole(
    box: tuple[float, float, float, float],
) -> None:
    image = canvas(480, 640)
    annotation = face(box, label="surprise")
    drawn = draw_faces(image, [annotation])
    left, top, right, bottom = (round(value) for value in box)
    outside = changed(drawn)
    outside[max(0, top) : bottom, max(0, left) : right] = False
    rows, columns = np.nonzero(outside)
    assert rows.size > 500  # a plate with "surprise 87%" on it
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert rows.size >= 0.95 * height * width  # one whole rectangle, none of it over the face
    assert (drawn[rows, columns] > 200).all(axis=1).any()  # with white text


def test_labels_of_neighbours_do_not_hide_each_other() -> None:
    people = [face((40 + 70 * i, 60, 100 + 70 * i, 130)) for i in range(6)]
    images = [draw_faces(canvas(220, 500), people[:count]) for count in range(len(people) + 1)]
    added = [changed(after) & ~changed(before) for before, after in pairwise(images)]
    for before, after in pairwise(images):  # what is there stays as it is
        np.testing.assert_array_equal(after[changed(before)], before[changed(before)])
    for one, other in combinations(added, 2):
        assert not (one & other).any()


def test_a_label_spares_eyes_and_mouth_where_the_face_fills_the_picture() -> None:
    for side in (48, 112, 640):
        annotation = face((0, 0, side, side), label="contempt")
        dots = draw_faces(canvas(side, side), [annotation])
        for x, y in np.rint(annotation.landmarks).astype(int):
            assert (dots[y, x] > 200).all()
        dark = (dots < 90).all(axis=2)
        assert 0.0 < dark.mean() < 0.3


def test_small_pictures_get_a_shorter_label_not_a_larger_picture() -> None:
    drawn = draw_faces(canvas(48, 48), [face((4, 4, 44, 44), label="happiness")])
    assert drawn.shape == (48, 48, 3)
    text = np.asarray((drawn > 170).all(axis=2))
    assert text.any()
    assert not text[:, [0, -1]].any()  # nothing is cut off at the sides


def test_a_label_longer_than_the_picture_is_cut_not_refused() -> None:
    drawn = draw_faces(canvas(30, 30), [face((2, 2, 28, 28), label="inexpressible" * 5)])
    assert drawn.shape == (30, 30, 3)
