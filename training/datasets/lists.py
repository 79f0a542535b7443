"""Lists of difficult test images (head pose over 30 or 45 degrees, occlusion) as the authors of
RAN (Wang et al., 2020) publish them for FERPlus, RAF-DB and AffectNet.

    4/fer0032228.jpg             pose: class, name
    4/6d34ea022a.../8.jpg        pose over 45 degrees on AffectNet: class, name, number of a crop
    val/0/bc9ad400db.../         occlusion on AffectNet: class, name
    1_fer0034656.png 8 0         occlusion on FERPlus: class, name, two codes of the occlusion
    test_0003_aligned 3 4        occlusion on RAF-DB: name, class, a code of the occlusion

Classes are indices in the data set's own order. Images are found by their stems, whatever their
format; the list's label counts, since published figures are measured against it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.datasets.records import DatasetError, Split, hard_split

CLASS_FOLDER = re.compile(r"(?:[a-z]+/)?(\d+)/([^/]+)(?:/\d+\.jpg)?")
CLASS_PREFIX = re.compile(r"(\d+)_([^/]+)")


@dataclass(frozen=True, eq=False)
class ListedImages:
    """The images of a list that a split has."""

    split: Split
    """With the list's labels, in the order of the list."""
    listed: int
    """Different images on the list."""
    other_classes: int
    """Those of a class that the split does not have (contempt, with seven classes)."""
    relabelled: int
    """Images found whose label in the data set is another one, or none."""

    def summary(self) -> str:
        """One line for a report."""
        parts = [f"{len(self.split)} of {self.listed} listed images found"]
        if self.other_classes:
            parts.append(f"{self.other_classes} are of other classes")
        if self.relabelled:
            parts.append(f"{self.relabelled} have another label in the data set")
        return "; ".join((*parts, "measured against the list's labels"))


def read_list(path: Path) -> dict[str, int]:
    """Stem -> class index; of an image listed twice, the first. Raises DatasetError."""
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; expected lines such as 4/fer0032228.jpg")
    classes: dict[str, int] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip():
            entry = _parse(line)
            if entry is None:
                raise DatasetError(
                    f"{path}, line {number}: expected a class and a name, such as "
                    "4/fer0032228.jpg, 1_fer0034656.png 8 0 or test_0003_aligned 3 4"
                )
            classes.setdefault(*entry)
    return classes


def _parse(line: str) -> tuple[str, int] | None:
    name, *codes = line.split()
    name = name.rstrip("/")
    match = CLASS_FOLDER.fullmatch(name) or CLASS_PREFIX.fullmatch(name)
    if match:
        return _stem(match[2]), int(match[1])
    if codes and codes[0].isdecimal() and not name.isdecimal():
        return _stem(name), int(codes[0])
    return None


def _stem(name: str) -> str:
    # RAF-DB's lists name the aligned images; its original ones are the same faces.
    return Path(name).stem.removesuffix("_aligned")


def select(split: Split, path: Path) -> ListedImages:
    """The images of `split` that the list at `path` names, with the list's labels.

    Raises DatasetError for a malformed list and where none of its images is found.
    """
    classes = read_list(path)
    known = {name: label for name, label in classes.items() if label < len(split.labels)}
    position = {_stem(image.name): index for index, image in enumerate(split.paths)}
    found = [(position[name], label) for name, label in known.items() if name in position]
    if not found:
        raise DatasetError(f"{path}: none of its {len(classes)} images is in the split")
    indices = np.array([index for index, _ in found])
    labels = np.array([label for _, label in found], np.int64)
    listed = hard_split(split.labels, [split.paths[i] for i in indices], labels)
    relabelled = int((split.classes[indices] != labels).sum())
    return ListedImages(listed, len(classes), len(classes) - len(known), relabelled)
