"""The data sets by name: one table for the commands and the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training.datasets import affectnet, ferplus, folder, kdef, rafdb
from training.datasets.records import DatasetError, Part, Split

# How the protocol of a model ends that has learnt from the validation images too.
FINAL = "training + validation"


@dataclass(frozen=True)
class Choice:
    """What a data set leaves open; each takes what it has a use for."""

    majority_only: bool = True
    """Leave out images whose votes have no majority."""
    fold: int = 0
    """The fold that is the test, where a data set comes in folds."""


@dataclass(frozen=True)
class DataSet:
    """One data set under one protocol."""

    title: str
    protocol: str
    """What a model's contract says of it."""
    layout: str
    load: Callable[[Path, Part, Choice], Split]
    """Split of a part. Raises DatasetError."""
    folds: int = 0
    images: str = ""
    """What the weights' licence calls its images; the title where it is empty."""

    def protocol_of(self, choice: Choice, *, final: bool) -> str:
        """The protocol with the choices that change which images are learnt from."""
        fold = f"; fold {choice.fold} of {self.folds} is the test" if self.folds else ""
        learnt = FINAL if final else "training"
        return f"{self.protocol}{fold}; {learnt}"


def _ferplus(root: Path, part: Part, choice: Choice) -> Split:
    if part == "train":
        return ferplus.training_and_validation(root, majority_only=choice.majority_only)[0]
    if part == "final":
        return ferplus.final_training(root, majority_only=choice.majority_only)
    name = "valid" if part == "validation" else "test"
    return ferplus.load_split(root, name, majority_only=choice.majority_only)


def _rafdb(root: Path, part: Part, _choice: Choice) -> Split:
    return rafdb.load_split(root, part)


def _affectnet8(root: Path, part: Part, _choice: Choice) -> Split:
    return affectnet.load_split(root, part, classes=8)


def _affectnet7(root: Path, part: Part, _choice: Choice) -> Split:
    return affectnet.load_split(root, part, classes=7)


def _kdef_person(root: Path, part: Part, choice: Choice) -> Split:
    return kdef.load_split(root, part, fold=choice.fold, by="person")


def _kdef_images(root: Path, part: Part, choice: Choice) -> Split:
    return kdef.load_split(root, part, fold=choice.fold, by="images")


def _folder(root: Path, part: Part, choice: Choice) -> Split:
    return folder.load_split(root, part, majority_only=choice.majority_only)


_HELD_OUT = "one training image in ten, by a hash of its name, is validation"
DATASETS = {
    "ferplus": DataSet(
        "FERPlus",
        "majority, official label.csv; twins of the test split left out",
        "FERPlus's layout, FER2013Train/label.csv beside FER2013Train/fer0000000.png ...",
        _ferplus,
        images="FER2013",
    ),
    "rafdb": DataSet(
        "RAF-DB", f"basic, seven classes, official split; {_HELD_OUT}", rafdb.LAYOUT, _rafdb
    ),
    "affectnet8": DataSet(
        "AffectNet",
        f"eight classes; the official validation split is the test; {_HELD_OUT}",
        affectnet.LAYOUT,
        _affectnet8,
    ),
    "affectnet7": DataSet(
        "AffectNet",
        f"seven classes; the official validation split is the test; {_HELD_OUT}",
        affectnet.LAYOUT,
        _affectnet7,
    ),
    "kdef": DataSet("KDEF", "folds by person", kdef.LAYOUT, _kdef_person, folds=kdef.FOLDS),
    "kdef-images": DataSet(
        "KDEF",
        "folds by images (people recur in the test)",
        kdef.LAYOUT,
        _kdef_images,
        folds=kdef.FOLDS,
    ),
    "folder": DataSet(
        "own images", "its own labels and splits", folder.LAYOUT, _folder, images="one's own"
    ),
}


def dataset_of(title: str, protocol: str) -> str:
    """The name of the data set that a run's provenance tells of; "" where there is none such."""
    alike = (n for n, d in DATASETS.items() if d.title == title and protocol.startswith(d.protocol))
    return next(alike, "")


def find_dataset(name: str) -> DataSet:
    """The data set called `name`. Raises DatasetError naming those that there are."""
    if name not in DATASETS:
        raise DatasetError(f"data set {name!r} is unknown; one of {', '.join(DATASETS)}")
    return DATASETS[name]
