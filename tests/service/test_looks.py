"""When a photo is searched more closely, and what must never change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from service.faces.detector import (
    NOTHING,
    FaceDetector,
    Placement,
    UInt8,
    merge,
    place,
)
from service.faces.face import Face, lean, longer_side
from service.faces.looks import (
    COARSE_FACE,
    MOST_SPOTS,
    Found,
    Look,
    Round,
    Spots,
    plan_rounds,
    turned_look,
)
from service.faces.refining import refined, straightened
from service.pipeline import Networks


def face(x1: float, y1: float, x2: float, y2: float, score: float = 0.99) -> Face:
    landmarks = np.array([(x1, y1), (x2, y1), (x1, y2), (x2, y2), (x1, y2)], np.float32)
    return Face(np.array((x1, y1, x2, y2), np.float32), landmarks, score)


def rounds_of(height: int, width: int) -> list[Round]:
    return [turn for turn in plan_rounds(height, width) if isinstance(turn, Round)]


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
    assert canvases(networks.detector, portrait) == [(256, 256)]
    large = np.asarray(cv2.resize(portrait, (2000, 2000)), np.uint8)
    assert canvases(networks.detector, large) == [(256, 256), (640, 640)]


def test_a_small_face_calls_for_a_closer_look(networks: Networks, portrait: UInt8) -> None:
    scene = np.full((960, 1280, 3), 90, np.uint8)
    scene[:256, :256] = cv2.resize(portrait, (256, 256), interpolation=cv2.INTER_AREA)
    looked = canvases(networks.detector, scene)
    assert looked[:2] == [(192, 256), (480, 640)]
    assert looked[2:].count((544, 704)) < 4, "tiles without a doubt are left out"


@pytest.mark.parametrize(("size", "small"), [((480, 640), 28), ((1080, 1920), 44)])
def test_small_faces_behind_a_large_one_take_a_thorough_search(
    networks: Networks, portrait: UInt8, size: tuple[int, int], small: int
) -> None:
    scene = np.full((*size, 3), 90, np.uint8)
    scene[-400:, -400:] = portrait[:400, :400]
    head = portrait[40:220, 160:340]  # its face is two thirds of it
    little = cv2.resize(head, (small * 3 // 2, small * 3 // 2), interpolation=cv2.INTER_AREA)
    for left in (20, 120):
        scene[30 : 30 + len(little), left : left + len(little)] = little
    detector = networks.detector
    (large,) = detector.detect(scene)
    found = detector.detect(scene, search="thorough")
    assert len(found) == 3
    assert small * 0.7 < longer_side(found[-1]) < small * 1.4
    np.testing.assert_allclose(found[0].box, large.box, atol=0.1 * longer_side(large))


def test_a_thorough_search_draws_all_of_a_photo_at_its_own_size() -> None:
    sure = Found((face(500, 300, 800, 700),), ())
    sizes = ((480, 640), (641, 500), (960, 1280), (1080, 1920), (3000, 4000), (1200, 300))
    for height, width in sizes:
        first, *later = plan_rounds(height, width, "thorough")
        looks = [*first.wanted(NOTHING), *(look for turn in later for look in turn.wanted(sure))]
        scale = max(look.scale for look in looks)
        assert scale >= min(1.0, 1920 / max(height, width))
        finest = [look.region or (0, 0, width, height) for look in looks if look.scale == scale]
        covered = np.zeros((height, width), bool)
        for x1, y1, x2, y2 in finest:
            covered[y1:y2, x1:x2] = True
        assert covered.all()
    assert plan_rounds(200, 300, "thorough") == plan_rounds(200, 300)


def test_only_tiles_with_a_doubt_are_searched() -> None:
    tiles = next(r for r in rounds_of(960, 1280) if len(r.looks) == 4)
    sure = Found((face(500, 300, 800, 700),), ())
    assert tiles.wanted(sure) == ()
    (only,) = tiles.wanted(Found(sure.faces, (face(10, 10, 30, 30, 0.2),)))
    assert only.region is not None
    assert only.region[:2] == (0, 0)
    assert len(tiles.wanted(NOTHING)) == 4


def spots_at_first() -> Spots:
    """Those of a photo of 480x640, before it is drawn larger as a whole."""
    return next(turn for turn in plan_rounds(480, 640) if isinstance(turn, Spots))


def test_a_doubt_is_looked_at_by_itself() -> None:
    spots, sure = spots_at_first(), face(300, 100, 500, 350)
    assert spots.wanted(Found((sure,), ())) == ()
    doubt = face(40, 60, 70, 90, 0.2)
    (look,) = spots.wanted(Found((sure,), (doubt,)))
    assert look.canvas == (192, 192)
    assert look.region == (0, 0, 151, 171)
    assert look.shows(doubt)
    beside = face(80, 60, 110, 90, 0.3)
    assert len(spots.wanted(Found((sure,), (doubt, beside)))) == 1, "one canvas shows both"
    far = face(560, 400, 600, 440, 0.3)
    assert len(spots.wanted(Found((sure,), (doubt, far)))) == 2


def test_a_large_doubt_gets_a_larger_canvas_and_one_that_outgrows_it_none() -> None:
    spots, sure = spots_at_first(), face(300, 100, 500, 350)
    (look,) = spots.wanted(Found((sure,), (face(0, 0, 200, 200, 0.5),)))
    assert look.canvas == (256, 256)
    assert 200 * look.scale == pytest.approx(0.7 * 256), "drawn smaller, with room around it"
    assert look.region is not None
    assert look.region[2] * look.scale <= 256
    (look,) = spots.wanted(Found((sure,), (face(20, 20, 170, 170, 0.5),)))
    assert (look.canvas, look.scale) == ((256, 256), spots.later.looks[0].scale), "it fits as it is"
    too_large = Found((sure,), (face(0, 0, 300, 300, 0.5),))
    assert spots.wanted(too_large) == ()
    assert spots.later.wanted(too_large) == ()


def test_many_doubts_are_looked_at_all_at_once() -> None:
    spots, sure = spots_at_first(), face(300, 100, 500, 350)
    doubts = [face(x, y, x + 20, y + 20, 0.2) for x in range(0, 640, 90) for y in (0, 230, 460)]
    found = Found((sure,), tuple(doubts))
    assert len(doubts) > MOST_SPOTS
    assert spots.wanted(found) == ()
    assert spots.later.wanted(found) == spots.later.looks


def test_doubts_beside_a_small_face_are_left_to_the_search_it_calls_for() -> None:
    spots, small = spots_at_first(), face(300, 100, 330, 140)
    found = Found((small,), (face(0, 0, 30, 30, 0.5),))
    assert spots.wanted(found) == ()
    assert spots.later.wanted(found) == spots.later.looks


def test_what_a_spot_does_not_show_is_no_doubt_any_more(
    networks: Networks, portrait: UInt8
) -> None:
    scene = np.full((480, 640, 3), 90, np.uint8)
    scene[:400, 240:640] = cv2.resize(portrait, (400, 400), interpolation=cv2.INTER_AREA)
    spots, doubt = spots_at_first(), face(40, 60, 70, 90, 0.2)
    earlier = Found((face(340, 90, 430, 220),), (doubt,))
    looked = networks.detector.find([place(scene, look) for look in spots.wanted(earlier)])
    settled = merge(earlier, looked)
    assert settled.faces == earlier.faces
    assert settled.doubts == ()


def test_a_small_face_seen_in_a_spot_calls_for_a_search(
    networks: Networks, portrait: UInt8
) -> None:
    scene = np.full((480, 640, 3), 90, np.uint8)
    scene[:, 320:] = cv2.resize(portrait[:300, 130:330], (320, 480))
    scene[200:360, 20:180] = cv2.resize(portrait, (160, 160), interpolation=cv2.INTER_AREA)
    large, small = networks.detector.detect(scene)
    assert small.box[2] < 200
    assert large.box[0] > 240
    looked = canvases(networks.detector, scene)
    assert looked[0] == (192, 256)
    assert looked.index((192, 192)) < looked.index((480, 640))


def test_tiles_cover_the_image_and_overlap() -> None:
    for height, width in ((960, 1280), (3000, 4000), (4000, 2250), (9, 8000)):
        for turn in rounds_of(height, width):
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


def test_a_piece_that_came_first_gives_way_to_the_whole_face() -> None:
    half, whole = face(50, 50, 110, 110, 0.6), face(0, 0, 200, 200, 0.8)
    assert merge(Found((half,)), [Found((whole,))]).faces == (whole,)
    surer = face(50, 50, 110, 110, 0.9)
    assert merge(Found((surer,)), [Found((whole,))]).faces == (whole, surer)


def test_what_a_spot_cuts_stays_in_doubt(networks: Networks, portrait: UInt8) -> None:
    """The tile beside a tile shows it whole; beside a spot there is none."""
    tile = Look((320, 320), 1.0, 0.7, region=(225, 20, 512, 320), doubt_score=0.1)
    for look, doubts in ((tile, 0), (replace(tile, alone=True), 1)):
        (found,) = networks.detector.find([place(portrait, look)])
        assert found.faces == ()
        assert len(found.doubts or ()) == doubts


def test_a_doubt_on_a_known_face_is_none() -> None:
    known = Found((face(0, 0, 200, 200),), ())
    on_it, beside = face(90, 90, 120, 120, 0.3), face(300, 90, 330, 120, 0.3)
    assert merge(known, [Found((), (on_it, beside))]).doubts == (beside,)


def test_a_doubt_in_two_tiles_is_left_to_both() -> None:
    """A small face calls for the tile on the left alone, whose border cuts the doubt."""
    turns = plan_rounds(960, 1280)
    at = next(i for i, t in enumerate(turns) if isinstance(t, Round) and len(t.looks) == 4)
    spots, tiles = turns[at - 1], turns[at]
    assert isinstance(spots, Spots)
    assert isinstance(tiles, Round)
    left, right = (look.region for look in tiles.looks[:2])
    assert left is not None
    assert right is not None
    x = (left[2] + right[0]) / 2
    large, small = face(500, 500, 800, 800), face(100, 100, 130, 130)
    doubt = face(x - 30, 100, x + 30, 160, 0.3)
    looks = spots.wanted(Found((large, small), (doubt,)))
    assert [look.shows(doubt) for look in looks] == [True]


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
    looks = [look for turn in rounds_of(side, side) for look in turn.looks]
    assert [(look.canvas, look.scale) for look in looks] == expected
    assert len(rounds_of(side, side)) == len(plan_rounds(side, side))
    assert all(look.doubt_score is None for look in looks)


def test_coarse_landmarks_get_a_closer_look(networks: Networks, portrait: UInt8) -> None:
    detector = networks.detector
    scene = np.full((1050, 1400, 3), 90, np.uint8)
    scene[:512, :512] = portrait
    coarse = merge(NOTHING, detector.find([place(scene, rounds_of(1050, 1400)[0].looks[0])]))
    (face_at_first,) = coarse.faces
    assert face_at_first.seen_side < COARSE_FACE
    (whole,) = detector.find([place(portrait, Look((640, 640), 1.0, 0.7))])[0].faces
    (better,) = detector.detect(scene)
    assert better.seen_side > face_at_first.seen_side
    errors = [np.abs(f.landmarks - whole.landmarks).mean() for f in (face_at_first, better)]
    assert errors[1] < errors[0] / 2


def test_a_closer_look_that_misses_changes_nothing() -> None:
    known, look = face(0, 0, 60, 60), Look((192, 192), 1.0, 0.5)
    assert refined(known, look, Found()) is known
    assert refined(known, look, Found((face(50, 50, 110, 110),))) is known
    assert refined(known, look, Found((face(1, 1, 61, 61, 0.6),))).score == known.score


def turned(
    portrait: UInt8, degrees: float, scale: float = 1.0
) -> tuple[UInt8, NDArray[np.float64]]:
    """The portrait turned clockwise around its face on a larger picture, and how: [2,3]."""
    matrix = cv2.getRotationMatrix2D((228.0, 118.0), -degrees, scale)
    matrix[:, 2] += (500 - 228, 400 - 118)
    scene = cv2.warpAffine(portrait, matrix, (1000, 800), borderValue=(90, 90, 90))
    return np.asarray(scene, np.uint8), np.asarray(matrix, np.float64)


@pytest.mark.parametrize(
    ("degrees", "scale"),
    [(-60, 1), (-45, 1), (45, 1), (60, 1), (90, 1), (-45, 0.5), (60, 0.5), (-60, 3), (90, 3)],
)
def test_landmarks_of_a_leaning_face_are_where_they_are(
    networks: Networks, portrait: UInt8, degrees: float, scale: float
) -> None:
    (known,) = networks.detector.detect(portrait)
    scene, matrix = turned(portrait, degrees, scale)
    (found,) = networks.detector.detect(scene)
    expected = known.landmarks @ matrix[:, :2].T + matrix[:, 2]
    eye_distance = np.linalg.norm(known.landmarks[0] - known.landmarks[1])
    errors = np.linalg.norm(found.landmarks - expected, axis=1)
    assert errors.mean() < 0.15 * eye_distance * scale
    assert (lean(found) - lean(known) - degrees + 180) % 360 - 180 == pytest.approx(0, abs=8)
    assert found.turn


def test_upright_faces_and_small_pictures_are_not_turned() -> None:
    upright = standing(0)
    assert turned_look(upright, 480, 640) is None
    assert turned_look(standing(20), 480, 640) is None
    assert turned_look(standing(-40), 300, 320) is None, "pictures for training stay as they were"
    look = turned_look(standing(-40), 480, 640)
    assert look is not None
    assert look.turn == pytest.approx(-40)
    assert look.canvas == (192, 192)


def test_a_face_is_turned_again_only_where_the_first_turn_was_off() -> None:
    right, off = (replace(standing(degrees), turn=-40.0) for degrees in (-45, -60))
    assert turned_look(right, 480, 640) is None
    again = turned_look(off, 480, 640)
    assert again is not None
    assert again.turn == pytest.approx(-60)
    assert turned_look(replace(standing(175), turn=-178.0), 480, 640) is None, "7 degrees apart"


def test_a_turned_look_that_shows_no_better_face_changes_nothing_else() -> None:
    known, look = standing(40), Look((192, 192), 1.0, 0.5, region=(0, 0, 192, 192), turn=40.0)
    for seen in (Found(), Found((face(500, 400, 560, 460),)), Found((standing(0, score=0.9),))):
        same = straightened(known, look, seen)
        assert same.landmarks is known.landmarks
        assert same.score == known.score
        assert turned_look(same, 480, 640) is None, "it is not tried again"
    better = straightened(known, look, Found((standing(55, score=0.97),)))
    assert lean(better) == pytest.approx(55)
    assert better.box is known.box


def standing(degrees: float, score: float = 0.99) -> Face:
    """A face of 100 pixels that leans clockwise by so much."""
    points = np.array(((-20, -20), (20, -20), (0, 5), (-15, 25), (15, 25)), np.float64)
    turn = np.deg2rad(degrees)
    rotation = np.array(((np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))))
    landmarks = (points @ rotation.T + (200, 200)).astype(np.float32)
    return Face(np.array((150, 150, 250, 250), np.float32), landmarks, score)
