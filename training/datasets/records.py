"""What every data set's loader returns, and finding images that occur twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


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

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, kept: NDArray[np.bool_]) -> Split:
        """The images where `kept` [N] is true."""
        paths = tuple(path for path, keep in zip(self.paths, kept, strict=True) if keep)
        return Split(self.labels, paths, self.targets[kept], self.classes[kept])

    def hardened(self) -> Split:
        """The images that have a hard label, with that class alone as the target."""
        kept = self.subset(self.classes >= 0)
        targets = np.eye(len(self.labels), dtype=np.float32)[kept.classes]
        return Split(self.labels, kept.paths, targets, kept.classes)


def concatenate(first: Split, second: Split) -> Split:
    """Both splits, in order. Raises DatasetError where their labels differ."""
    if first.labels != second.labels:
        raise DatasetError(f"labels differ: {first.labels} and {second.labels}")
    return Split(
        first.labels,
        first.paths + second.paths,
        np.concatenate((first.targets, second.targets)),
        np.concatenate((first.classes, second.classes)),
    )


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
