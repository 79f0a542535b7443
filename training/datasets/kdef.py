"""KDEF (Lundqvist, Flykt and Öhman, 1998): 4,900 photos, 70 people, 7 expressions, 5 angles.

    ROOT/.../AF01ANS.JPG

at any depth (the official archive has a folder a person): session A or B, sex F or M, the
person's number, expression (AF AN DI HA NE SA SU), angle (FL HL S HR FR: full and half left,
straight, half and full right). Other names, such as the archive's few misnamed files, are left
out.

There is no official split. The paper words ten folds "by images": photos of one person, even of
one expression in both sessions, are then learnt from and tested on. Folds "by person" keep
each person on one side. Fold `k` is the test, the next one validation, the other eight are learnt
from; the final training takes all nine.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.datasets.records import DatasetError, Part, Split, hard_split, hash_order

LABELS = ("fear", "anger", "disgust", "happiness", "neutral", "sadness", "surprise")
EXPRESSIONS = ("AF", "AN", "DI", "HA", "NE", "SA", "SU")
ANGLES = ("FL", "HL", "S", "HR", "FR")
NAME = re.compile(
    rf"([AB])([FM]\d\d)({'|'.join(EXPRESSIONS)})({'|'.join(ANGLES)})\.JPE?G", re.IGNORECASE
)
FOLDS = 10
LAYOUT = "KDEF's files, such as KDEF/AF01/AF01ANS.JPG, at any depth"

FoldsBy = Literal["images", "person"]


@dataclass(frozen=True)
class Photo:
    """What a file's name says."""

    path: Path
    person: str
    """Sex and number, such as F01."""
    expression: str
    angle: str


def load_split(root: Path, part: Part, *, fold: int, by: FoldsBy) -> Split:
    """The photos of `part` where `fold`, 0 to 9, is the test. Raises DatasetError for no photo."""
    if not 0 <= fold < FOLDS:
        raise DatasetError(f"fold {fold}: KDEF's folds are 0 to {FOLDS - 1}")
    photos = find_photos(root)
    folds = folds_of(photos, by)
    test, validation = folds == fold, folds == (fold + 1) % FOLDS
    kept = {
        "train": ~test & ~validation,
        "validation": validation,
        "final": ~test,
        "test": test,
    }[part]
    if not kept.any():
        raise DatasetError(f"{root}: {len(photos)} photos are too few for {FOLDS} folds")
    classes = [EXPRESSIONS.index(photo.expression) for photo in photos]
    return hard_split(LABELS, [photo.path for photo in photos], classes).subset(kept)


def find_photos(root: Path) -> list[Photo]:
    """The photos under `root` in the order of their names; a name that occurs twice, once."""
    photos: dict[str, Photo] = {}
    for path in sorted(root.rglob("*")):
        match = NAME.fullmatch(path.name)
        if match:
            _, person, expression, angle = match.group(1, 2, 3, 4)
            photo = Photo(path, person.upper(), expression.upper(), angle.upper())
            photos.setdefault(path.stem.upper(), photo)
    if not photos:
        raise DatasetError(f"{root}: no file named as AF01ANS.JPG; expected {LAYOUT}")
    return [photos[name] for name in sorted(photos)]


def folds_of(photos: Sequence[Photo], by: FoldsBy) -> NDArray[np.int64]:
    """[N] the fold, 0 to 9, of each photo; it depends on the names of all photos alone.

    By images, each expression at each angle is spread evenly; by person, each sex is.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    keys = []
    for photo in photos:
        key = photo.person if by == "person" else photo.path.stem.upper()
        group = photo.person[0] if by == "person" else photo.expression + photo.angle
        groups[group].add(key)
        keys.append(key)
    ordered = [key for _, group in sorted(groups.items()) for key in sorted(group, key=hash_order)]
    fold = {key: position % FOLDS for position, key in enumerate(ordered)}
    return np.array([fold[key] for key in keys], np.int64)
