"""Similarity transform, crops and head pose."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.faces.alignment import (
    ARCFACE_SIZE,
    ARCFACE_TEMPLATE,
    FACE_MODEL_MM,
    Float64,
    compose,
    head_pose,
    scaled_template,
    similarity_transform,
    warp_crop,
)

TEMPLATE = np.array(ARCFACE_TEMPLATE)
angles = st.floats(-180, 180)
scales = st.floats(0.05, 50)
shifts = st.floats(-5000, 5000)


def similarity(angle: float, scale: float, x: float, y: float) -> Float64:
    cos, sin = scale * np.cos(np.radians(angle)), scale * np.sin(np.radians(angle))
    return np.array([[cos, -sin, x], [sin, cos, y]])


def apply(matrix: Float64, points: Float64) -> Float64:
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2])


@given(angles, scales, shifts, shifts)
def test_a_similarity_is_recovered_exactly(angle: float, scale: float, x: float, y: float) -> None:
    matrix = similarity(angle, scale, x, y)
    found = similarity_transform(TEMPLATE, apply(matrix, TEMPLATE))
    np.testing.assert_allclose(found, matrix, rtol=1e-9, atol=1e-6)


def test_a_mirrored_face_is_not_reflected_back() -> None:
    mirrored = TEMPLATE * (-1, 1)
    linear = similarity_transform(mirrored, TEMPLATE)[:, :2]
    assert np.linalg.det(linear) > 0


def test_noisy_points_get_the_least_squares_solution() -> None:
    rng = np.random.default_rng(0)
    source = TEMPLATE + rng.normal(0, 3, TEMPLATE.shape)
    best = similarity_transform(source, TEMPLATE)

    def cost(matrix: Float64) -> float:
        return float(((apply(matrix, source) - TEMPLATE) ** 2).sum())

    for _ in range(200):
        nudge = similarity(*(rng.normal(0, 1, 4) * (0.5, 0.01, 0.5, 0.5) + (0, 1, 0, 0)))
        assert cost(best) <= cost(compose(nudge, best)) + 1e-9


@pytest.mark.parametrize("points", [np.ones((5, 2)), np.full((5, 2), np.nan)])
def test_degenerate_points_are_refused(points: Float64) -> None:
    with pytest.raises(ValueError, match="coincide or are not finite"):
        similarity_transform(points, TEMPLATE)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"expected two \[P,2\] arrays"):
        similarity_transform(np.zeros((5, 3)), TEMPLATE)


def test_compose_applies_the_first_first() -> None:
    first, second = similarity(30, 2, 5, -3), similarity(-70, 0.5, 1, 9)
    combined = apply(compose(second, first), TEMPLATE)
    np.testing.assert_allclose(combined, apply(second, apply(first, TEMPLATE)))


def test_the_template_scales_with_the_crop() -> None:
    np.testing.assert_allclose(scaled_template(TEMPLATE, 224), 2 * TEMPLATE)
    np.testing.assert_allclose(scaled_template(TEMPLATE, ARCFACE_SIZE), TEMPLATE)


@pytest.mark.parametrize("size", [56, 200, 1500])
def test_landmarks_land_on_the_template(size: int) -> None:
    """White dots on the landmarks of a face of any size end up at the template's points."""
    landmarks = apply(similarity(20, size / 112, 300, 200), TEMPLATE)
    image = np.zeros((2200, 2400, 3), np.uint8)
    for x, y in landmarks:
        centre = (round(x * 16), round(y * 16))  # sixteenths of a pixel
        radius = max(1, size // 40) * 16
        cv2.circle(image, centre, radius, (255, 255, 255), -1, cv2.LINE_AA, shift=4)
    crop = warp_crop(image, similarity_transform(landmarks, TEMPLATE), ARCFACE_SIZE)
    for x, y in TEMPLATE:
        patch = crop[int(y) - 6 : int(y) + 7, int(x) - 6 : int(x) + 7, 0].astype(float)
        rows, columns = np.mgrid[-6:7, -6:7]
        offset = np.array([(patch * columns).sum(), (patch * rows).sum()]) / patch.sum()
        assert np.abs(offset + (int(x), int(y)) - (x, y)).max() < 0.6


def test_a_large_face_is_not_aliased() -> None:
    """A fine checkerboard shrunk tenfold must become grey, not a moiré of black and white."""
    board = (np.indices((1200, 1200)).sum(0) % 2 * 255).astype(np.uint8)
    image = np.repeat(board[..., None], 3, axis=2)
    crop = warp_crop(image, similarity(5, 0.1, 0, 0), 112)
    assert crop[20:90, 20:90].std() < 10
    assert abs(float(crop[20:90, 20:90].mean()) - 127.5) < 3


def test_outside_the_image_the_border_repeats() -> None:
    image = np.full((40, 40, 3), 200, np.uint8)
    crop = warp_crop(image, similarity(0, 1, 100, 100), 112)
    assert (crop == 200).all()
    far = warp_crop(image, similarity(0, 0.2, 500, 500), 112)
    assert (far == 200).all()


def rotation(yaw: float, pitch: float, roll: float) -> Float64:
    y, p, r = np.radians((-yaw, pitch, roll))
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return np.asarray(about_z @ about_x @ about_y)


@pytest.mark.parametrize(
    "pose", [(0, 0, 0), (35, 0, 0), (-60, 0, 0), (0, 25, 0), (0, -20, 0), (0, 0, 40), (30, -15, 10)]
)
@pytest.mark.parametrize("scale", [0.2, 1, 20])
def test_the_pose_of_a_projected_face_is_recovered(
    pose: tuple[float, float, float], scale: float
) -> None:
    points = FACE_MODEL_MM @ rotation(*pose).T
    landmarks = points[:, :2] * scale + (700, 90)
    found = head_pose(landmarks)
    np.testing.assert_allclose((found.yaw, found.pitch, found.roll), pose, atol=5)


def test_positive_yaw_is_the_viewers_right() -> None:
    points = FACE_MODEL_MM @ rotation(30, 0, 0).T
    nose, eyes = points[2, 0], points[:2, 0].mean()
    assert nose > eyes
    assert head_pose(points[:, :2]).yaw > 20


def test_no_pose_from_degenerate_landmarks() -> None:
    pose = head_pose(np.full((5, 2), 3.0))
    assert (pose.yaw, pose.pitch, pose.roll) == (0.0, 0.0, 0.0)
