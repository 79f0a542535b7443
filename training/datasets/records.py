"""What every data set's loader returns, and finding images that occur twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Part = Literal["train", "validation", "final", "test", "all"]
"""What a split is for: learning, choosing, both together for a last training, the last measure;
"all" is every image of one's own, for measuring a model that has learnt from none of them."""
PARTS: tuple[Part, ...] = ("train", "validation", "final", "test")
# Where a data set has no validation split of its own: one training image in this many.
HELD_OUT = 10


class DatasetError(Exception):
    """A data set is not in its official layout; the message names what is missing."""


@dataclass(frozen=True, eq=False)
class Split:
    """N labelled images of one split."""

    labels: tuple[str, ...]
    """The K class names in order."""
    paths: tuple[Path, ...]
    """[N] image files."""
    targets: NDArray[np.float32]
    """[N,K] soft labels, each row sums to 1."""
    classes: NDArray[np.int64]
    """[N] index of the hard label, -1 where the protocol gives none."""
    boxes: NDArray[np.float32] | None = None
    """[N,4] x1, y1, x2, y2 of the face that is meant, NaN where unknown; None: known nowhere."""
    landmarks: NDArray[np.float32] | None = None
    """[N,5,2] in the detector's order, NaN where unknown; None: known nowhere."""

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, kept: NDArray[np.bool_]) -> Split:
        """The images where `kept` [N] is true."""
        return Split(
            self.labels,
            tuple(path for path, keep in zip(self.paths, kept, strict=True) if keep),
            self.targets[kept],
            self.classes[kept],
            None if self.boxes is None else self.boxes[kept],
            None if self.landmarks is None else self.landmarks[kept],
        )

    def hardened(self) -> Split:
        """The images that have a hard label, with that class alone as the target."""
        kept = self.subset(self.classes >= 0)
        return replace(kept, targets=one_hot(kept.classes, len(self.labels)))


def one_hot(classes: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """[N] class indices -> [N,count] targets."""
    return np.eye(count, dtype=np.float32)[classes]


def hard_split(labels: tuple[str, ...], paths: Sequence[Path], classes: ArrayLike) -> Split:
    """A split of a data set that gives each image one class."""
    indices = np.asarray(classes, np.int64)
    return Split(labels, tuple(paths), one_hot(indices, len(labels)), indices)


def hash_order(name: str) -> int:
    """A number that depends on `name` alone and has nothing to do with its meaning."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def evenly_spread(count: int, most: int) -> NDArray[np.bool_]:
    """[count] true for up to `most`, from first to last: a data set may be sorted by class."""
    chosen = np.zeros(count, dtype=bool)
    chosen[np.linspace(0, count - 1, min(most, count)).astype(int)] = True
    return chosen


def part_of_training(split: Split, part: Part) -> Split:
    """`split` without (train) or with only (validation) one image in HELD_OUT, by its name.

    Raises DatasetError where that leaves nothing.
    """
    held_out = np.array([hash_order(p.stem) % HELD_OUT == 0 for p in split.paths], dtype=bool)
    kept = held_out if part == "validation" else ~held_out
    if not kept.any():
        raise DatasetError(f"{len(split)} training images are too few: none is left for {part}")
    return split.subset(kept)


def require_files(paths: Sequence[Path], layout: str) -> None:
    """Raise DatasetError naming the first file that is missing, how many are, and the layout."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DatasetError(
            f"{missing[0]}: no such file ({len(missing)} of {len(paths)} images are missing); "
            f"expected {layout}"
        )


def arranged(split: Split, labels: tuple[str, ...]) -> Split:
    """`split` with its classes, matched by name, in the order of a model's `labels`.

    The model may know more of them. Raises DatasetError naming a class that it does not know.
    """
    if unknown := [name for name in split.labels if name not in labels]:
        raise DatasetError(
            f"the model does not know {', '.join(unknown)}, of the data; "
            f"its classes are {', '.join(labels)}"
        )
    places = np.array([labels.index(name) for name in split.labels])
    targets = np.zeros((len(split), len(labels)), np.float32)
    targets[:, places] = split.targets
    classes = np.where(split.classes < 0, -1, places[split.classes]).astype(np.int64)
    return replace(split, labels=labels, targets=targets, classes=classes)


def concatenate(first: Split, second: Split) -> Split:
    """Both splits, in order. Raises DatasetError where their labels differ."""
    if first.labels != second.labels:
        raise DatasetError(f"labels differ: {first.labels} and {second.labels}")
    return Split(
        first.labels,
        first.paths + second.paths,
        np.concatenate((first.targets, second.targets)),
        np.concatenate((first.classes, second.classes)),
        _stack(first.boxes, second.boxes, first, second),
        _stack(first.landmarks, second.landmarks, first, second),
    )


def _stack(
    a: NDArray[np.float32] | None, b: NDArray[np.float32] | None, first: Split, second: Split
) -> NDArray[np.float32] | None:
    known = b if a is None else a
    if known is None:
        return None
    parts = [
        np.full((len(split), *known.shape[1:]), np.nan, np.float32) if values is None else values
        for values, split in ((a, first), (b, second))
    ]
    return np.concatenate(parts)


def file_digests(paths: Iterable[Path]) -> list[str]:
    """SHA-256 (hex) of each file's bytes. Raises DatasetError naming a file it cannot read."""
    return [_file_digest(path) for path in paths]


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error


def without_twins(split: Split, others: Split) -> Split:
    """`split` without the images that are byte-identical to one of `others`."""
    seen = set(file_digests(others.paths))
    kept = np.array([digest not in seen for digest in file_digests(split.paths)], dtype=bool)
    return split.subset(kept)
