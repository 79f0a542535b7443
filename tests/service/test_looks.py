"""When a photo is searched more closely, and what must never change."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from service.faces.detector import (
    NOTHING,
    Face,
    FaceDetector,
    Placement,
    UInt8,
    merge,
    place,
    refined,
)
from service.faces.looks import COARSE_FACE, Found, Look, plan_rounds
from service.pipeline import Networks


def face(x1: float, y1: float, x2: float, y2: float, score: float = 0.99) -> Face:
    landmarks = np.array([(x1, y1), (x2, y1), (x1, y2), (x2, y2), (x1, y2)], np.float32)
    return Face(np.array((x1, y1, x2, y2), np.float32), landmarks, score)


def canvases(detector: FaceDetector, image: UInt8) -> list[tuple[int, int]]:
    """Of the looks that `image` takes."""
    seen: list[tuple[int, int]] = []

    class Watching(FaceDetector):
        def __init__(self) -> None:
            pass

        def find(self, placements: Sequence[Placement]) -> list[Found]:
            seen.extend(p.look.canvas for p in placements)
            return detector.find(placements)

    Watching().detect(image)
    return seen


def test_a_face_that_fills_a_good_part_needs_no_search(networks: Networks, portrait: UInt8) -> None:
    assert canvases(networks.detector, portrait) == [(320, 320)]
    large = np.asarray(cv2.resize(portrait, (2000, 2000)), np.uint8)
    assert canvases(networks.detector, large) == [(320, 320), (640, 640)]


def test_a_small_face_calls_for_a_closer_look(networks: Networks, portrait: UInt8) -> None:
    scene = np.full((960, 1280, 3), 90, np.uint8)
    scene[:256, :256] = cv2.resize(portrait, (256, 256), interpolation=cv2.INTER_AREA)
    looked = canvases(networks.detector, scene)
    assert looked[:2] == [(256, 320), (480, 640)]
    assert looked[2:].count((544, 704)) < 4, "tiles without a doubt are left out"


def test_only_tiles_with_a_doubt_are_searched() -> None:
    tiles = next(r for r in plan_rounds(960, 1280) if len(r.looks) == 4)
    sure = Found((face(500, 300, 800, 700),), ())
    assert tiles.wanted(sure) == ()
    (only,) = tiles.wanted(Found(sure.faces, (face(10, 10, 30, 30, 0.2),)))
    assert only.region is not None
    assert only.region[:2] == (0, 0)
    assert len(tiles.wanted(NOTHING)) == 4


def test_tiles_cover_the_image_and_overlap() -> None:
    for height, width in ((960, 1280), (3000, 4000), (4000, 2250), (9, 8000)):
        for turn in plan_rounds(height, width):
            covered = np.zeros((height, width), dtype=bool)
            for look in turn.looks:
                x1, y1, x2, y2 = look.region or (0, 0, width, height)
                assert 0 <= x1 < x2 <= width
                assert 0 <= y1 < y2 <= height
                covered[y1:y2, x1:x2] = True
            assert covered.all()


def test_a_tile_gives_places_in_the_image(networks: Networks, portrait: UInt8) -> None:
    (whole,) = networks.detector.detect(portrait)
    look = Look((320, 320), 1.0, 0.7, region=(100, 20, 400, 320))
    (seen,) = networks.detector.find([place(portrait, look)])
    np.testing.assert_allclose(seen.faces[0].landmarks, whole.landmarks, atol=8)


def test_faces_cut_by_a_tile_are_left_to_its_neighbour(networks: Networks, portrait: UInt8) -> None:
    look = Look((320, 320), 1.0, 0.7, region=(225, 20, 512, 320))
    assert networks.detector.find([place(portrait, look)])[0].faces == ()


def test_a_piece_of_a_known_face_is_no_face() -> None:
    known = Found((face(0, 0, 200, 200, 0.8),))
    assert merge(known, [Found((face(50, 50, 110, 110),))]).faces == known.faces
    beside = face(210, 0, 270, 60)
    assert len(merge(known, [Found((beside,))]).faces) == 2


def test_doubts_are_those_of_the_last_look_that_tells() -> None:
    old, new = (face(0, 0, 9, 9, 0.2),), (face(5, 5, 9, 9, 0.3),)
    earlier = Found((), old)
    assert merge(earlier, [Found()]).doubts == old
    assert merge(earlier, [Found((), new)]).doubts == new


@pytest.mark.parametrize("side", [48, 100, 240])
def test_pictures_for_training_are_looked_at_as_they_were(side: int) -> None:
    """Stored landmarks of data sets, and models trained on them, belong to these looks."""
    first = min(320 / side, 3.0)
    expected = [((320, 320), first)]
    expected += [((320, 320), s / side) for s in (200, 320, 112) if s / side != first]
    if min(640 / side, 3.0) >= 1.3 * first:
        expected.append(((640, 640), min(640 / side, 3.0)))
    looks = [look for turn in plan_rounds(side, side) for look in turn.looks]
    assert [(look.canvas, look.scale) for look in looks] == expected
    assert not any(look.doubts for look in looks)


def test_coarse_landmarks_get_a_closer_look(networks: Networks, portrait: UInt8) -> None:
    detector = networks.detector
    scene = np.full((1440, 1920, 3), 90, np.uint8)
    scene[:512, :512] = portrait
    coarse = merge(NOTHING, detector.find([place(scene, plan_rounds(1440, 1920)[0].looks[0])]))
    (face_at_first,) = coarse.faces
    assert face_at_first.seen_side < COARSE_FACE
    (whole,) = detector.find([place(portrait, Look((640, 640), 1.0, 0.7))])[0].faces
    (better,) = detector.detect(scene)
    assert better.seen_side > face_at_first.seen_side
    errors = [np.abs(f.landmarks - whole.landmarks).mean() for f in (face_at_first, better)]
    assert errors[1] < errors[0] / 2


def test_a_closer_look_that_misses_changes_nothing() -> None:
    known = face(0, 0, 60, 60)
    assert refined(known, Found()) is known
    assert refined(known, Found((face(50, 50, 110, 110),))) is known
    assert refined(known, Found((face(1, 1, 61, 61, 0.6),))).score == known.score
