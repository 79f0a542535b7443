from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from service.tracking import MAX_GAP_SECONDS, Tracker, iou, match

Float64 = NDArray[np.float64]
Corners = tuple[float, float, float, float]


def boxes(*corners: Corners) -> Float64:
    return np.array(corners, np.float64).reshape(-1, 4)


LEFT, RIGHT = (0, 0, 10, 10), (50, 0, 60, 10)
SURE, UNSURE = [1.0, 0.0], [0.5, 0.5]


def numbers(
    tracker: Tracker, seconds: float, *corners: tuple[float, float, float, float]
) -> list[int]:
    found = boxes(*corners)
    return [n for n, _ in tracker.follow(seconds, found, np.tile(SURE, (len(found), 1)))]


def test_iou() -> None:
    overlaps = iou(boxes(LEFT, RIGHT), boxes((0, 0, 10, 5), (5, 0, 15, 10), (0, 0, 0, 0)))
    assert overlaps == pytest.approx(np.array([[0.5, 1 / 3, 0], [0, 0, 0]]))
    assert iou(boxes(), boxes(LEFT)).shape == (0, 1)


def test_best_overlap_wins() -> None:
    before = boxes((0, 0, 10, 10), (4, 0, 14, 10))
    assert match(before, boxes((3, 0, 13, 10))) == {0: 1}
    assert match(before, boxes((3, 0, 13, 10), (1, 0, 11, 10))) == {0: 1, 1: 0}
    assert match(before, boxes(RIGHT)) == {}
    assert match(boxes(), boxes(LEFT)) == {}


def test_faces_keep_their_numbers_whatever_their_order() -> None:
    tracker = Tracker(smooth_seconds=0)
    assert numbers(tracker, 0.0, LEFT, RIGHT) == [1, 2]
    assert numbers(tracker, 0.1, (51, 0, 61, 10), (1, 0, 11, 10)) == [2, 1]
    assert numbers(tracker, 0.2, (2, 0, 12, 10), (100, 0, 110, 10)) == [1, 3]
    assert numbers(tracker, 0.3) == []
    assert numbers(tracker, 0.4, (52, 0, 62, 10)) == [2]


def test_face_that_was_gone_for_long_is_a_new_one() -> None:
    tracker = Tracker(smooth_seconds=0)
    assert numbers(tracker, 0.0, LEFT) == [1]
    assert numbers(tracker, MAX_GAP_SECONDS, LEFT) == [1]
    assert numbers(tracker, 2 * MAX_GAP_SECONDS + 0.01, LEFT) == [2]


def smoothed(tracker: Tracker, seconds: float, probabilities: list[float]) -> Float64:
    ((_, values),) = tracker.follow(seconds, boxes(LEFT), np.array([probabilities]))
    return values


def test_probabilities_are_averaged_over_time_not_over_frames() -> None:
    once, often = Tracker(smooth_seconds=0.5), Tracker(smooth_seconds=0.5)
    for tracker in (once, often):
        assert smoothed(tracker, 0.0, SURE) == pytest.approx(SURE)
    for step in range(1, 11):
        last = smoothed(often, 0.04 * step, UNSURE)
    assert smoothed(once, 0.4, UNSURE) == pytest.approx(last)
    assert last[0] == pytest.approx(0.5 + 0.5 * math.exp(-0.4 / 0.5))
    assert last.sum() == pytest.approx(1)


def test_no_smoothing_leaves_them_as_they_are() -> None:
    tracker = Tracker(smooth_seconds=0)
    smoothed(tracker, 0.0, SURE)
    assert smoothed(tracker, 0.1, UNSURE) == pytest.approx(UNSURE)
