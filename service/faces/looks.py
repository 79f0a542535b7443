"""How a photo is searched for faces: at which sizes, in which order, and when to stop.

A photo is drawn small first, where a face that fills a good part of it is found in a sixth of the
time. It is drawn larger only where that leaves doubt: nothing found, a small face (small faces have
company), or something that is a face with a low score. The larger sizes come in overlapping tiles,
of which only those with a small face in them are searched; a doubt is first looked at by itself.

A large face ends that search, and small ones behind it may leave no hint where the photo is drawn
small. Who wants them asks for a thorough search, which draws all of the photo at its own size, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Literal

from service.faces.face import Face, lean, longer_side, middle

Region = tuple[int, int, int, int]
Search = Literal["quick", "thorough"]

# (height, width), multiples of the network's largest stride. Few, because only images on canvases
# of one size share a batch; none large, because memory grows with them.
FIRST_CANVASES = ((160, 256), (256, 160), (192, 256), (256, 192), (256, 256))
MIDDLE_CANVASES = ((384, 640), (640, 384), (480, 640), (640, 480), (640, 640))
TILES = ((544, 704), (704, 544))
# One face, or a doubt, by itself; a large doubt (a canvas that other looks have, too).
FACE_CANVAS, LARGE_FACE_CANVAS = (192, 192), (256, 256)
# A small picture.
SQUARE = (320, 320)
SMALLEST_CANVAS = (160, 160)
CANVAS_SIZES = (*FIRST_CANVASES, *MIDDLE_CANVASES, *TILES, FACE_CANVAS, SQUARE, SMALLEST_CANVAS)
TILE_OVERLAP = 64

FIRST_SIDE, MIDDLE_SIDE = 256, 640
# Pictures up to here are drawn in a way of their own.
SMALL_SIDE = 320
# Long sides of the photo where it is searched in tiles.
FINE_SIDES = (1280, 1920)
# A finer look is worth its time only where it enlarges by this much.
FINER_GAIN = 1.3
# Tiny pictures are enlarged, but not without end: on 48-pixel faces, landmarks agree best with
# those of the mirrored picture at a scale of 3 (of 2.3 to 6.7 tried).
MAX_ENLARGEMENT = 3.0
# Photos are enlarged less.
MOST_ENLARGED = 2.0

# Scores from which a face counts, by its longer side on the canvas: small faces score low, while
# what scores 0.5 to 0.7 and is large was a texture or a cat in the photos tried.
SMALL_FACE = 64
SMALL_FACE_MIN_SCORE = 0.5
MIN_SCORE = 0.7
# Faces below so many canvas pixels are looked at more closely, and call for a search for others.
SMALLEST_SURE_FACE = 32
# Scores between these are a doubt. Where the photo is drawn smallest, faces that are too small to
# count score less; of what is large there and scores below 0.1, 1 in 20 was a face.
DOUBT_SCORE, SURE_SCORE = 0.1, 0.9
FIRST_DOUBT_SCORE = 0.05
# What was looked at by itself, larger, and scores less is settled.
SPOT_DOUBT_SCORE = 0.2
# Above this size a face that counts is no doubt, whatever it scores.
UNSURE_FACE = SMALL_FACE
# Larger faces outgrow the anchors of a finer look and are seen in pieces there.
LARGEST_FACE = 224
# Landmarks of a face seen with fewer canvas pixels are coarse, so the face alone is looked at in
# this size. Above it a closer look gains nothing: of 2,300 FERPlus faces drawn into photos and seen
# with 60 to 80 canvas pixels, as many were read right without it (88.0%) as with it (88.0%).
COARSE_FACE, FACE_SIDE = 48, 128
# The network has seen heads that stand nearly upright: of others it finds the face, but not where
# eyes and mouth are. What leans more than the first is looked at turned back; where its landmarks
# then say that this was off by more than the second, once more.
LEANS_DEGREES, TURN_ERROR_DEGREES = 25.0, 12.0
# Doubts are looked at one by one where that takes at most this share of the pixels, in few looks.
SPOTS_SHARE, MOST_SPOTS = 0.7, 12
# A doubt fills at most this share of the canvas it gets to itself, and keeps away from its border.
SPOT_FILL = 0.7
# Long sides, in canvas pixels, of pictures that may be one big face.
SECOND_LOOK_SIDES = (200, 320, 112)
FRAME_FILLING = ((200, (256, 256)), (112, SMALLEST_CANVAS))
SECOND_LOOK_MIN_SCORE = 0.65
# A picture this small is mostly one face cut out, so less is asked of it.
SMALL_PICTURE = 256
SMALL_PICTURE_MIN_SCORE = 0.4


@dataclass(frozen=True)
class Look:
    """One way to look at an image: a canvas, and how large the image is drawn on it."""

    canvas: tuple[int, int]
    """(height, width) in pixels."""
    scale: float
    """Canvas pixels per image pixel."""
    min_score: float
    """Scores of faces that are not small count from here, unless the caller names a threshold."""
    sides: tuple[float, float] = (0.0, math.inf)
    """Only faces whose longer side has so many canvas pixels count in this look."""
    region: Region | None = None
    """The part that is drawn, x1, y1, x2, y2 in image pixels; None: the whole image."""
    doubt_score: float | None = None
    """What scores too low to count is told of from here on, what is large from DOUBT_SCORE on.

    None: earlier doubts stay.
    """
    alone: bool = False
    """Whether no other look shows what the region's border cuts: it is told of as a doubt."""
    turn: float = 0.0
    """Degrees clockwise that a head leans which stands upright in this look.

    The look then shows the region's middle, and may reach beyond the region and the image.
    """

    def shows(self, face: Face) -> bool:
        """Whether the middle of `face` (image pixels) is in the region."""
        if self.region is None:
            return True
        x, y = middle(face)
        x1, y1, x2, y2 = self.region
        return x1 <= x < x2 and y1 <= y < y2


@dataclass(frozen=True)
class Found:
    """What the looks so far have found, in image pixels."""

    faces: tuple[Face, ...] = ()
    """Largest first."""
    doubts: tuple[Face, ...] | None = None
    """What scores too low to count, or low for a face; None where no look told of it."""


@dataclass(frozen=True)
class Round:
    """Looks that may be taken together, and when."""

    looks: tuple[Look, ...]
    when_empty: bool = True
    """All are taken where no face has been found yet."""
    small_below: float = 0.0
    """Those are taken that show a face whose longer side is below so many image pixels ..."""
    on_doubt: bool = False
    """... or a doubt."""
    always: bool = False
    """All are taken, whatever has been found."""

    def wanted(self, found: Found) -> tuple[Look, ...]:
        """The looks to take after the rounds before have `found` so much; mostly none."""
        if self.always or (not found.faces and self.when_empty):
            return self.looks
        doubts = self.doubts(found) if self.on_doubt else []
        return self.around([*self.small(found), *doubts])

    def small(self, found: Found) -> list[Face]:
        """Faces that call for a search for others."""
        return [face for face in found.faces if longer_side(face) < self.small_below]

    def doubts(self, found: Found) -> list[Face]:
        """Doubts that these looks could settle."""
        largest = LARGEST_FACE / self.looks[0].scale
        return [doubt for doubt in found.doubts or () if longer_side(doubt) <= largest]

    def around(self, faces: Sequence[Face]) -> tuple[Look, ...]:
        """The looks that show any of these."""
        return tuple(look for look in self.looks if any(map(look.shows, faces)))


@dataclass(frozen=True)
class Spots:
    """Before a round that doubts would call for: each doubt by itself, if that is less work.

    What is found so, or stays in doubt, may call for the round after all.
    """

    later: Round
    size: tuple[int, int]
    """(height, width) of the image, pixels."""

    def wanted(self, found: Found) -> tuple[Look, ...]:
        """The looks to take after the rounds before have `found` so much; mostly none."""
        later = self.later
        if not found.faces and later.when_empty:
            return ()
        taken_anyway = later.around(later.small(found))
        doubts = [d for d in later.doubts(found) if not set(later.around([d])) <= set(taken_anyway)]
        spots = _spots(doubts, later.looks[0], *self.size)
        few = len(spots) <= MOST_SPOTS
        worth = _pixels(spots) <= SPOTS_SHARE * _pixels(later.around(doubts))
        return spots if few and worth else ()


Turn = Round | Spots


def closer_look(face: Face, height: int, width: int) -> Look | None:
    """For a face with coarse landmarks in a photo of this size, the look that gives better ones."""
    if max(height, width) <= SMALL_SIDE or face.seen_side >= COARSE_FACE:
        return None
    side = longer_side(face)
    scale = min(FACE_SIDE / side, MAX_ENLARGEMENT)
    if scale * side < face.seen_side * FINER_GAIN:
        return None
    region = _region_around(face, FACE_CANVAS[0] / scale, height, width)
    return Look(FACE_CANVAS, scale, SMALL_FACE_MIN_SCORE, region=region)


def turned_look(face: Face, height: int, width: int) -> Look | None:
    """For a face that leans, in a photo of this size, the look in which it stands upright."""
    leaning = lean(face)
    error = abs((leaning - face.turn + 180) % 360 - 180)
    if error <= (TURN_ERROR_DEGREES if face.turn else LEANS_DEGREES):
        return None
    if max(height, width) <= SMALL_SIDE:
        return None
    side = longer_side(face)
    scale = min(FACE_SIDE / side, MAX_ENLARGEMENT)
    region = _square_around(face, FACE_CANVAS[0] / scale)
    return Look(FACE_CANVAS, scale, SMALL_FACE_MIN_SCORE, region=region, turn=leaning)


def fitting_canvas(
    height: float, width: float, canvases: Sequence[tuple[int, int]] = CANVAS_SIZES
) -> tuple[int, int]:
    """The smallest canvas that holds `height` x `width` pixels, else the best for that shape."""
    fitting = [c for c in canvases if c[0] >= height - 0.5 and c[1] >= width - 0.5]
    by_scale = max(canvases, key=lambda c: min(c[0] / height, c[1] / width))
    return min(fitting, key=lambda c: c[0] * c[1], default=by_scale)


@lru_cache(maxsize=1024)
def plan_rounds(height: int, width: int, search: Search = "quick") -> tuple[Turn, ...]:
    """How to look at an image of `height` x `width` pixels; the first round is always taken.

    Small pictures are drawn at their own size or larger either way.
    """
    if max(height, width) <= SMALL_SIDE:
        return _plan_small_picture(height, width)
    return _plan_photo(height, width, thorough=search == "thorough")


def _plan_photo(height: int, width: int, *, thorough: bool) -> tuple[Turn, ...]:
    """Small and middle, then as one big face that fills the frame, then in tiles."""
    long_side = max(height, width)
    first = _look(height, width, FIRST_SIDE, FIRST_CANVASES)
    middle = replace(_look(height, width, MIDDLE_SIDE, MIDDLE_CANVASES), doubt_score=DOUBT_SCORE)
    rounds: list[Turn] = []
    if thorough or long_side > MIDDLE_SIDE:
        # The smallest size alone would show no hint of people behind a large face.
        rounds.append(Round((first, middle)))
    else:
        rounds.append(Round((replace(first, doubt_score=FIRST_DOUBT_SCORE),)))
        finer = Round((middle,), small_below=SMALLEST_SURE_FACE / first.scale, on_doubt=True)
        rounds += [Spots(finer, (height, width)), finer]
    rounds += [
        Round((_framed_look(long_side, side, canvas, SECOND_LOOK_MIN_SCORE),))
        for side, canvas in FRAME_FILLING
    ]
    # Where nothing is found, all of it is searched once at its own size, or nearly; enlarging it
    # beyond shows nothing new unless there is a hint of it.
    own_side = next((side for side in FINE_SIDES if side >= long_side), FINE_SIDES[-1])
    own_side = own_side if long_side > MIDDLE_SIDE else 0
    coarser = middle
    for side in FINE_SIDES:
        if thorough and side < own_side:
            continue
        tiles = _tiles(height, width, min(side / long_side, MAX_ENLARGEMENT))
        if side <= MOST_ENLARGED * long_side and tiles[0].scale >= coarser.scale * FINER_GAIN:
            below = SMALLEST_SURE_FACE / coarser.scale
            is_own = side == own_side
            finer = Round(tiles, is_own, below, on_doubt=True, always=thorough and is_own)
            rounds += [finer] if finer.always else [Spots(finer, (height, width)), finer]
            coarser = tiles[0]
    return tuple(rounds)


def _plan_small_picture(height: int, width: int) -> tuple[Round, ...]:
    """A face cut out, or a thumbnail: where nothing is found, it is drawn at other sizes.

    Data sets for training are such pictures: changes here change what is trained on.
    """
    long_side = max(height, width)
    fine = _look(height, width, SMALL_SIDE, (SQUARE,))
    rounds = [Round((fine,))]
    lowest = SMALL_PICTURE_MIN_SCORE if long_side <= SMALL_PICTURE else SECOND_LOOK_MIN_SCORE
    for side in SECOND_LOOK_SIDES:
        again = _framed_look(long_side, side, SQUARE, lowest)
        if again.scale != fine.scale:
            rounds.append(Round((again,)))
    finer = _look(height, width, MIDDLE_SIDE, MIDDLE_CANVASES)
    if long_side <= SMALL_PICTURE:
        finer = replace(finer, min_score=lowest)
    if finer.scale >= fine.scale * FINER_GAIN:
        rounds.append(Round((finer,), small_below=SMALL_FACE / fine.scale))
    return tuple(rounds)


def _look(height: int, width: int, target: int, canvases: Sequence[tuple[int, int]]) -> Look:
    """The image with its longer side at `target` canvas pixels, or as near as canvases allow."""
    scale = min(target / max(height, width), MAX_ENLARGEMENT)
    canvas = fitting_canvas(height * scale, width * scale, canvases)
    scale = min(scale, canvas[0] / height, canvas[1] / width)
    return Look(canvas, scale, MIN_SCORE)


def _framed_look(long_side: int, side: int, canvas: tuple[int, int], min_score: float) -> Look:
    """The whole image with its longer side at `side` pixels of a canvas that leaves a border."""
    return Look(canvas, side / long_side, min_score)


def _spots(doubts: Sequence[Face], like: Look, height: int, width: int) -> tuple[Look, ...]:
    """Each doubt on a canvas of its own, or together with one before it.

    At the scale of `like`, or as large as the canvas holds.
    """
    spots: list[Look] = []
    for doubt in sorted(doubts, key=lambda doubt: doubt.score, reverse=True):
        if not any(_shows_well(spot, doubt, height, width) for spot in spots):
            canvas, scale, side = FACE_CANVAS, like.scale, longer_side(doubt)
            if side * scale > SPOT_FILL * FACE_CANVAS[0]:
                canvas = LARGE_FACE_CANVAS
                scale = min(scale, SPOT_FILL * canvas[0] / side)
            region = _region_around(doubt, canvas[0] / scale, height, width)
            spots.append(
                replace(
                    like,
                    canvas=canvas,
                    scale=scale,
                    region=region,
                    doubt_score=SPOT_DOUBT_SCORE,
                    alone=True,
                )
            )
            if len(spots) > MOST_SPOTS:
                break
    return tuple(spots)


def _shows_well(spot: Look, face: Face, height: int, width: int) -> bool:
    """Whether there is room around the face in the spot's region."""
    assert spot.region is not None
    x1, y1, x2, y2 = spot.region
    x, y = middle(face)
    room = max(longer_side(face), SMALLEST_SURE_FACE / spot.scale) / 2 / SPOT_FILL
    across = (x1 == 0 or x - room >= x1) and (x2 == width or x + room <= x2)
    return across and (y1 == 0 or y - room >= y1) and (y2 == height or y + room <= y2)


def _region_around(face: Face, side: float, height: int, width: int) -> Region:
    """The part of an image of this size that a square of `side` pixels around the face covers."""
    x1, y1, x2, y2 = _square_around(face, side)
    return max(0, x1), max(0, y1), min(width, x2), min(height, y2)


def _square_around(face: Face, side: float) -> Region:
    x, y = middle(face)
    reach = side / 2
    return round(x - reach), round(y - reach), round(x + reach), round(y + reach)


def _pixels(looks: Sequence[Look]) -> int:
    return sum(look.canvas[0] * look.canvas[1] for look in looks)


def _tiles(height: int, width: int, scale: float) -> tuple[Look, ...]:
    """Overlapping parts of the image, drawn at `scale`."""
    canvas = TILES[0] if width >= height else TILES[1]
    rows = _intervals(height, canvas[0] / scale, TILE_OVERLAP / scale)
    columns = _intervals(width, canvas[1] / scale, TILE_OVERLAP / scale)
    return tuple(
        Look(canvas, scale, MIN_SCORE, (0.0, LARGEST_FACE), (x1, y1, x2, y2), DOUBT_SCORE)
        for (y1, y2), (x1, x2) in product(rows, columns)
    )


def _intervals(length: int, part: float, overlap: float) -> list[tuple[int, int]]:
    """Evenly spaced parts of at most `part` that cover `length`, and overlap by that much."""
    count = max(1, math.ceil((length - overlap) / (part - overlap)))
    step = (length - part) / (count - 1) if count > 1 else 0.0
    starts = [index * step for index in range(count)]
    return [(round(start), min(length, round(start + part))) for start in starts]
