"""Faces that were found, looked at once more where that shows better where eyes and mouth are."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from service.faces.face import Face, largest_first, overlap
from service.faces.looks import Found, Look, closer_look, turned_look

SAME_FACE_IOU = 0.4
# A face that stands upright scores no less than it did leaning, or its landmarks were right.
WORSE_SCORE = 0.05
MOST_TURNS = 2

Refinements = Generator[tuple[Look, ...], Sequence[Found] | None, Sequence[Face]]
"""Yields looks, is sent what each of them shows, and ends with the faces."""


def refinements(faces: Sequence[Face], height: int, width: int) -> Refinements:
    """The faces of an image of `height` x `width`, largest first, with better landmarks.

    Small ones are looked at closer, those that lean turned upright.
    """
    faces = yield from _again(faces, lambda face: closer_look(face, height, width), refined)
    for _ in range(MOST_TURNS):
        before = faces
        faces = yield from _again(
            faces, lambda face: turned_look(face, height, width), straightened
        )
        if faces is before:
            break
    return largest_first(faces)


def _again(
    faces: Sequence[Face],
    look_at: Callable[[Face], Look | None],
    better: Callable[[Face, Look, Found], Face],
) -> Refinements:
    """The faces, those that `look_at` has a look for made `better` by it; without any, the same."""
    looks = {face: look for face in faces if (look := look_at(face)) is not None}
    if not looks:
        return faces
    found = yield tuple(looks.values())
    seen = dict(zip(looks, found or (), strict=True))
    return [better(face, looks[face], seen[face]) if face in looks else face for face in faces]


def refined(face: Face, _: Look, closer: Found) -> Face:
    """The face as a closer look shows it; as it was where that look misses it."""
    seen = _same(face, closer)
    return face if seen is None else replace(seen, score=max(seen.score, face.score))


def straightened(face: Face, look: Look, upright: Found) -> Face:
    """The face with the landmarks that a turned look shows; with its own where that misses it."""
    seen = _same(face, upright)
    if seen is None or seen.score < face.score - WORSE_SCORE:
        return replace(face, turn=look.turn)
    score = max(seen.score, face.score)
    return replace(face, landmarks=seen.landmarks, score=score, turn=look.turn)


def _same(face: Face, found: Found) -> Face | None:
    """The one of those found that overlaps `face` most, if that is enough."""
    best = max(found.faces, key=lambda other: overlap(face, other), default=None)
    return best if best is not None and overlap(face, best) >= SAME_FACE_IOU else None
