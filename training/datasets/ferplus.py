"""FERPlus (Barsoum et al., ICMI 2016) in its official layout.

    ROOT/FER2013Train/label.csv, fer0000000.png ...  (likewise FER2013Valid, FER2013Test)
    ROOT/test_twins.txt                              (optional; lines: Train/fer0000077.png)

A row of label.csv: file name, box, then ten people's votes for neutral, happiness, surprise,
sadness, anger, disgust, fear, contempt, unknown, not-a-face.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.datasets.records import DatasetError, Split, concatenate, without_twins

LABELS = (
    "neutral",
    "happiness",
    "surprise",
    "sadness",
    "anger",
    "disgust",
    "fear",
    "contempt",
)
FOLDERS = {"train": "FER2013Train", "valid": "FER2013Valid", "test": "FER2013Test"}
TWINS_FILE = "test_twins.txt"
VOTE_COLUMNS = 10


def majority_class(votes: ArrayLike) -> int | None:
    """The official "majority" protocol on one image's votes [10]: class index, or None (left out).

    Single votes count as none; the winner must hold more than half of what remains, unknown and
    not-a-face counted in, and be an expression.
    """
    counts = np.asarray(votes, np.int64).copy()
    counts[counts == 1] = 0
    winner = int(counts.argmax())
    if 2 * counts[winner] <= counts.sum() or winner >= len(LABELS):
        return None
    return winner


def vote_distribution(votes: ArrayLike) -> NDArray[np.float32] | None:
    """Soft label [8] float32 from one image's votes [10], or None where no expression won.

    Single votes are dropped as outliers unless nothing else is left; None where, of the votes that
    remain, unknown and not-a-face hold at least half. What has a majority class has a soft label.
    """
    counts = np.asarray(votes, np.float32)
    agreed = np.where(counts > 1, counts, 0)
    kept = agreed if agreed.any() else counts
    expressions = kept[: len(LABELS)]
    if 2 * expressions.sum() <= kept.sum():
        return None
    return np.asarray(expressions / expressions.sum(), np.float32)


def load_split(root: Path, name: str, *, majority_only: bool = True) -> Split:
    """One of "train", "valid", "test".

    With `majority_only`, the images that the majority protocol keeps (25,045 / 3,191 / 3,137);
    without, also those whose votes have no majority: their soft label still says something.
    Raises DatasetError where a file is missing or a row is malformed.
    """
    folder = root / FOLDERS[name]
    paths, targets, classes = [], [], []
    for file_name, votes in _read_votes(folder):
        winner = majority_class(votes)
        target = vote_distribution(votes)
        if target is None or (majority_only and winner is None):
            continue
        paths.append(folder / file_name)
        targets.append(target)
        classes.append(-1 if winner is None else winner)
    if not paths:
        raise DatasetError(f"{folder}: label.csv leaves no image with an expression")
    return Split(LABELS, tuple(paths), np.stack(targets), np.array(classes, np.int64))


def _read_votes(folder: Path) -> list[tuple[str, list[int]]]:
    table = folder / "label.csv"
    if not table.is_file():
        raise DatasetError(
            f"{table}: no such file; expected the official layout, "
            f"{folder.name}/label.csv beside {folder.name}/fer0000000.png ..."
        )
    rows = []
    with table.open(newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            votes = row[2:]
            if len(votes) != VOTE_COLUMNS or not all(v.strip().isdecimal() for v in votes):
                raise DatasetError(
                    f"{table}, line {number}: expected name, box and {VOTE_COLUMNS} vote counts"
                )
            rows.append((row[0], [int(v) for v in votes]))
    return rows


def without_test_twins(split: Split, root: Path) -> Split:
    """`split` without the images that ROOT/test_twins.txt names (none if there is no such file)."""
    twins_file = root / TWINS_FILE
    if not twins_file.is_file():
        return split
    twins = set(twins_file.read_text().split())
    # "Train/fer0000077.png" is FER2013Train/fer0000077.png.
    names = [f"{p.parent.name.removeprefix('FER2013')}/{p.name}" for p in split.paths]
    return split.subset(np.array([name not in twins for name in names], dtype=bool))


def training_and_validation(root: Path, *, majority_only: bool = True) -> tuple[Split, Split]:
    """Training images free of twins of the test and validation splits; the whole validation."""
    validation = load_split(root, "valid")
    # Twins of *any* validation image, also of those that the protocol leaves out.
    everything = load_split(root, "valid", majority_only=False)
    train = without_test_twins(load_split(root, "train", majority_only=majority_only), root)
    return without_twins(train, everything), validation


def final_training(root: Path, *, majority_only: bool = True) -> Split:
    """Training and validation images together, free of twins of the test split.

    For the last training of a recipe that is already chosen, as published figures do.
    """
    parts = [load_split(root, name, majority_only=majority_only) for name in ("train", "valid")]
    return without_test_twins(concatenate(*parts), root)
