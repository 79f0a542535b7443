"""Which face of one frame is which of the frame before, and probabilities that do not flicker."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

MIN_IOU = 0.3
MAX_GAP_SECONDS = 0.5  # a face turned away for longer comes back under a new number


@dataclass
class _Track:
    number: int
    box: Float64
    seen: float
    smoothed: Float64 | None = None


class Tracker:
    """Numbers faces from 1 on by the overlap of their boxes from frame to frame.

    `smooth_seconds` is the time constant of an exponential average; 0 leaves probabilities as
    they are. Give it the frames in order.
    """

    def __init__(self, *, smooth_seconds: float) -> None:
        self._smooth_seconds = smooth_seconds
        self._tracks: list[_Track] = []
        self._next = 1

    def follow(
        self, seconds: float, boxes: Float64, probabilities: Float64
    ) -> list[tuple[int, Float64]]:
        """The track and the smoothed probabilities [K] of each face of the frame at `seconds`.

        `boxes` [F,4] x1, y1, x2, y2 in pixels; `probabilities` [F,K], 0..1.
        """
        self._tracks = [t for t in self._tracks if seconds - t.seen <= MAX_GAP_SECONDS]
        known = match(np.array([track.box for track in self._tracks]).reshape(-1, 4), boxes)
        answers = []
        for face, box in enumerate(boxes):
            track = self._tracks[known[face]] if face in known else self._begin(box, seconds)
            self._move(track, box, seconds, probabilities[face])
            assert track.smoothed is not None, "_move set it"
            answers.append((track.number, track.smoothed))
        return answers

    def _begin(self, box: Float64, seconds: float) -> _Track:
        track = _Track(self._next, box, seconds)
        self._tracks.append(track)
        self._next += 1
        return track

    def _move(self, track: _Track, box: Float64, seconds: float, probabilities: Float64) -> None:
        if track.smoothed is None or self._smooth_seconds <= 0:
            track.smoothed = probabilities
        else:
            # By time, not by frame: the same curve whatever the frame rate, and across gaps.
            weight = 1 - math.exp(-(seconds - track.seen) / self._smooth_seconds)
            track.smoothed = track.smoothed + weight * (probabilities - track.smoothed)
        track.box, track.seen = box, seconds


def match(before: Float64, now: Float64) -> dict[int, int]:
    """Which of the boxes `before` [B,4] each of `now` [N,4] is, by index; the best overlap first.

    A box of `now` that overlaps none by MIN_IOU is not in the answer.
    """
    overlaps = iou(now, before)
    order = np.dstack(np.unravel_index(np.argsort(-overlaps, axis=None), overlaps.shape))[0]
    matched: dict[int, int] = {}
    for new, old in order.tolist():
        if overlaps[new, old] < MIN_IOU:
            break
        if new not in matched and old not in matched.values():
            matched[new] = old
    return matched


def iou(first: Float64, second: Float64) -> Float64:
    """[N,M] intersection over union of boxes [N,4] and [M,4]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    union = _areas(first)[:, None] + _areas(second)[None] - common
    share = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return np.asarray(share, np.float64)


def _areas(boxes: Float64) -> Float64:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(-1), np.float64)
