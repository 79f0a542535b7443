"""AffectNet (Mollahosseini et al., 2017), manually annotated, in either of its public forms.

    ROOT/training.csv, ROOT/validation.csv      (or in ROOT/Manually_Annotated_file_lists/)
    ROOT/Manually_Annotated_Images/SUBDIRECTORY/NAME.jpg      (or SUBDIRECTORY in ROOT)

with the columns subDirectory_filePath and expression among others, or

    ROOT/train_set/images/0.jpg, ROOT/train_set/annotations/0_exp.npy       (likewise val_set)

Eight classes, or seven without contempt; images without an expression (8 none, 9 uncertain,
10 no face) are left out. The test split was never published, so the official validation split
is the test; one training image in ten, by a hash of its name, is kept for validation.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from training.datasets.records import (
    DatasetError,
    Part,
    Split,
    hard_split,
    part_of_training,
    require_files,
)

LABELS = (
    "neutral",
    "happiness",
    "sadness",
    "surprise",
    "fear",
    "disgust",
    "anger",
    "contempt",
)
TABLES = {"train": "training.csv", "test": "validation.csv"}
FOLDERS = {"train": "train_set", "test": "val_set"}
LISTS, IMAGES = "Manually_Annotated_file_lists", "Manually_Annotated_Images"
PATH_COLUMN, LABEL_COLUMN = "subDirectory_filePath", "expression"
# The official validation.csv comes without a header in some releases.
COLUMNS = (
    PATH_COLUMN,
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    LABEL_COLUMN,
    "valence",
    "arousal",
)
LAYOUT = (
    f"one of AffectNet's layouts, training.csv and validation.csv (columns {PATH_COLUMN}, "
    f"{LABEL_COLUMN}) beside {IMAGES}/, or train_set/ and val_set/, each with images/0.jpg "
    "and annotations/0_exp.npy"
)

Row = tuple[Path, int]


def load_split(root: Path, part: Part, *, classes: int = 8) -> Split:
    """The images of `part` in the first `classes` (8 or 7) of LABELS.

    Raises DatasetError where a file is missing or a row is malformed.
    """
    official = "test" if part == "test" else "train"
    numbered = root / FOLDERS[official]
    rows = _numbered_rows(numbered) if numbered.is_dir() else _table_rows(root, TABLES[official])
    kept = [(path, label) for path, label in rows if 0 <= label < classes]
    if not kept:
        raise DatasetError(f"{root}: no image with an expression; expected {LAYOUT}")
    paths = [path for path, _ in kept]
    require_files(paths, LAYOUT)
    split = hard_split(LABELS[:classes], paths, [label for _, label in kept])
    return split if part in ("final", "test") else part_of_training(split, part)


def _numbered_rows(folder: Path) -> list[Row]:
    annotations = sorted((folder / "annotations").glob("*_exp.npy"), key=_number)
    if not annotations:
        raise DatasetError(f"{folder / 'annotations'}: no N_exp.npy files; expected {LAYOUT}")
    return [(_numbered_image(folder, path), _annotation(path)) for path in annotations]


def _number(annotation: Path) -> tuple[int, str]:
    stem = annotation.name.removesuffix("_exp.npy")
    return (int(stem) if stem.isdecimal() else -1, stem)


def _numbered_image(folder: Path, annotation: Path) -> Path:
    return folder / "images" / f"{annotation.name.removesuffix('_exp.npy')}.jpg"


def _annotation(path: Path) -> int:
    try:
        return int(np.load(path))  # a number, or a string of one
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(f"{path}: not an expression code ({error})") from error


def _table_rows(root: Path, name: str) -> list[Row]:
    candidates = [root / name, root / LISTS / name]
    table = next((path for path in candidates if path.is_file()), None)
    if table is None:
        raise DatasetError(f"{candidates[0]}: no such file; expected {LAYOUT}")
    images = root / IMAGES if (root / IMAGES).is_dir() else root
    rows = []
    with table.open(newline="") as file:
        reader = csv.reader(file)
        first = next(reader, [])
        has_header = PATH_COLUMN in first
        header = first if has_header else list(COLUMNS)
        if LABEL_COLUMN not in header:
            raise DatasetError(f"{table}: no column {LABEL_COLUMN}; expected {LAYOUT}")
        where, what = header.index(PATH_COLUMN), header.index(LABEL_COLUMN)
        body = reader if has_header else [first, *reader]
        for number, row in enumerate(body, 1 + has_header):
            if len(row) <= max(where, what) or not row[what].strip().isdecimal():
                raise DatasetError(f"{table}, line {number}: expected a path and a class code")
            rows.append((images / row[where], int(row[what])))
    return rows
