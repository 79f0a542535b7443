"""One's own images, in folders or in a table.

    ROOT/happy/anything.jpg, ROOT/sad/...                 a folder a class
    ROOT/train/happy/..., ROOT/valid/happy/...            likewise, already split (test/ too);
                                                          valid/ or test/ alone, to measure on
    TABLE.csv or TABLE.parquet                            columns path, label and, where known,
                                                          split, votes, box, landmarks

Columns: `path` from the table's folder or absolute; `label` a class name, empty where only votes
are known; `split` train, valid or test; `votes` such as "happy=7 sad=3"; `box` x1 y1 x2 y2 of the
face that is meant; `landmarks` x y of left eye, right eye, nose, left and right corner of the
mouth (the viewer's left), in pixels of the upright image.

Class names are taken from the data, in alphabetical order. Where no validation images are
given, a fifth of each class is kept for it, chosen by a hash of the file's bytes: always the same,
and two copies of a file never fall on two sides. Files that are no images stay in: preparation
lists and counts what it cannot read.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.datasets.records import DatasetError, Part, Split

SPLITS = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "val": "validation",
    "validation": "validation",
    "test": "test",
}
# Of each class, where no validation images are given: one different image in this many.
HELD_OUT = 5
BOX_NUMBERS, LANDMARK_NUMBERS = 4, 10
NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:e[-+]?\d+)?", re.IGNORECASE)
VOTE = re.compile(r"([^=]+)=(\d+)")
LAYOUT = (
    "a folder a class (CLASS/image.jpg), train/ and valid/ with a folder a class in each, "
    "or a .csv or .parquet table with the columns path and label"
)


@dataclass(frozen=True)
class Record:
    """One image as the data describe it."""

    path: Path
    label: str
    """Empty where there are only votes."""
    split: str = ""
    """ "train", "validation", "test", or empty where the data do not say."""
    votes: dict[str, int] = field(default_factory=dict)
    box: tuple[float, ...] = ()
    landmarks: tuple[float, ...] = ()

    def winner(self) -> str:
        """The label, or the class with more than half of the votes, or an empty string."""
        if self.label or not self.votes:
            return self.label
        name = max(sorted(self.votes), key=lambda n: self.votes[n])
        return name if 2 * self.votes[name] > sum(self.votes.values()) else ""


def load_split(root: Path, part: Part, *, majority_only: bool = True) -> Split:
    """The images of `part`; `majority_only` leaves out those whose votes have no majority.

    Raises DatasetError where `root` is in none of the layouts, where there are fewer than two
    classes to learn, and where no image is left.
    """
    records = read_records(root)
    labels = class_names(records)
    kept = [r for r in _of_part(records, part) if r.winner() or (r.votes and not majority_only)]
    if not kept:
        raise DatasetError(f"{root}: {_why_empty(root, records, part)}; expected {LAYOUT}")
    if part in ("train", "final") and len(labels) < 2:
        raise DatasetError(f"{root}: two or more classes are needed, found only {labels[0]}")
    return _as_split(kept, labels)


def _why_empty(root: Path, records: Sequence[Record], part: Part) -> str:
    given = {record.split for record in records}
    if part in ("test", "all") or given & {"", "train"}:
        return f"no image with a label for the {part} split"
    missing = "no row has split train" if root.is_file() else "train/ is missing"
    if part == "validation":
        missing = "no image with a label for the validation split"
    return f"{missing}, every image is for {' or '.join(sorted(given))}"


def split_counts(root: Path) -> Counter[str]:
    """Images by the split that the data give them, "" where they do not say."""
    return Counter(record.split for record in read_records(root))


def read_records(root: Path) -> list[Record]:
    """Every image of a folder or table, in a fixed order. Raises DatasetError."""
    if root.is_file():
        return _table_records(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such file or folder; expected {LAYOUT}")
    folders = _folders(root)
    parts = [(SPLITS[f.name.lower()], f) for f in folders if f.name.lower() in SPLITS]
    # Without train/, a folder called test beside other classes is a class.
    if len(parts) < len(folders) and not any(name == "train" for name, _ in parts):
        parts = [("", root)]
    records = [
        Record(path, folder.name, split)
        for split, part in parts
        for folder in _folders(part)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    if not records:
        raise DatasetError(f"{root}: no images in folders; expected {LAYOUT}")
    return records


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def class_names(records: Iterable[Record]) -> tuple[str, ...]:
    """The names of all labels and votes, in alphabetical order."""
    return tuple(sorted({name for r in records for name in (r.label, *r.votes) if name}))


# --- splits ------------------------------------------------------------------------------------


def _of_part(records: Sequence[Record], part: Part) -> list[Record]:
    if part == "all":
        return list(records)
    if part == "test":
        return [r for r in records if r.split == "test"]
    rest = [r for r in records if r.split != "test"]
    if part == "final":
        return rest
    given = any(r.split == "validation" for r in rest)
    held_out = [r.split == "validation" for r in rest] if given else _held_out(rest)
    return [r for r, held in zip(rest, held_out, strict=True) if held == (part == "validation")]


def _held_out(records: Sequence[Record]) -> list[bool]:
    digests = [_digest(record.path) for record in records]
    by_class: dict[str, set[str]] = defaultdict(set)
    for record, digest in zip(records, digests, strict=True):
        by_class[record.winner()].add(digest)
    chosen: set[str] = set()
    for found in by_class.values():
        # The last image of a class stays where it can be learnt from.
        count = min(-(-len(found) // HELD_OUT), len(found) - 1)
        chosen.update(sorted(found)[:count])
    return [digest in chosen for digest in digests]


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return hashlib.sha256(str(path).encode()).hexdigest()


def _as_split(records: Sequence[Record], labels: tuple[str, ...]) -> Split:
    winners = [record.winner() for record in records]
    return Split(
        labels,
        tuple(record.path for record in records),
        np.stack([_target(record, labels) for record in records]),
        np.array([labels.index(w) if w else -1 for w in winners], np.int64),
        _numbers([record.box for record in records], (BOX_NUMBERS,)),
        _numbers([record.landmarks for record in records], (LANDMARK_NUMBERS // 2, 2)),
    )


def _target(record: Record, labels: tuple[str, ...]) -> NDArray[np.float32]:
    votes = record.votes or {record.label: 1}
    counts = np.array([votes.get(name, 0) for name in labels], np.float32)
    return np.asarray(counts / counts.sum(), np.float32)


def _numbers(
    rows: Sequence[tuple[float, ...]], shape: tuple[int, ...]
) -> NDArray[np.float32] | None:
    if not any(rows):
        return None
    values = np.full((len(rows), *shape), np.nan, np.float32)
    for index, row in enumerate(rows):
        if row:
            values[index] = np.reshape(row, shape)
    return values


# --- tables ------------------------------------------------------------------------------------


def _table_records(table: Path) -> list[Record]:
    read = _parquet_rows if table.suffix.lower() == ".parquet" else _csv_rows
    columns, rows = read(table)
    needed = ["path"] if "votes" in columns else ["path", "label"]
    if missing := [name for name in needed if name not in columns]:
        raise DatasetError(
            f"{table}: no column {' and no column '.join(missing)}, found {', '.join(columns)}; "
            "expected path and label, or path and votes"
        )
    records = []
    for number, row in enumerate(rows, 1):
        try:
            records.append(_record(row, table.parent))
        except ValueError as error:
            raise DatasetError(f"{table}, row {number}: {error}") from error
    if not records:
        raise DatasetError(f"{table}: no rows; expected {LAYOUT}")
    return records


def _csv_rows(table: Path) -> tuple[Sequence[str], list[dict[str, str]]]:
    """Names of the columns, and rows by these names."""
    try:
        # utf-8-sig: spreadsheets write a byte order mark before the first column's name.
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            return columns, [
                {name: value for name, value in row.items() if name and isinstance(value, str)}
                for row in reader
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{table}: not a CSV file in UTF-8 ({error})") from error


def _parquet_rows(table: Path) -> tuple[Sequence[str], list[dict[str, str]]]:
    """Likewise; what is no text, such as a list of numbers, as Python writes it."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DatasetError(
            f"{table}: reading Parquet needs pyarrow (pip install pyarrow); or save it as CSV"
        ) from error
    try:
        read = parquet.read_table(table)
    except (ValueError, OSError) as error:  # pyarrow's errors are of these kinds
        raise DatasetError(f"{table}: not a Parquet file ({error})") from error
    return read.column_names, [
        {n: str(value) for n, value in row.items() if value is not None} for row in read.to_pylist()
    ]


def _record(row: dict[str, str], folder: Path) -> Record:
    name, label = row.get("path", "").strip(), row.get("label", "").strip()
    votes = _parse_votes(row.get("votes", ""))
    split = row.get("split", "").strip().lower()
    if not name or not (label or votes):
        raise ValueError("expected a path and a label, or votes such as happy=7 sad=3")
    if label and votes and votes.get(label) != max(votes.values()):
        raise ValueError(
            f"label {label} is not the class with the most votes ({row['votes']}); expected the "
            "same, or one of them alone"
        )
    if split and split not in SPLITS:
        raise ValueError(f"split {split!r}; expected train, valid or test")
    return Record(
        folder / name,
        label,
        SPLITS.get(split, ""),
        votes,
        _parse_numbers(row, "box", BOX_NUMBERS),
        _parse_numbers(row, "landmarks", LANDMARK_NUMBERS),
    )


def _parse_votes(text: str) -> dict[str, int]:
    """Votes by class, those without any left out. Raises ValueError."""
    votes = {}
    for part in re.findall(r"[^\s,;]+", text):
        if not (vote := VOTE.fullmatch(part)):
            raise ValueError(f"votes {text!r}; expected CLASS=NUMBER, such as happy=7 sad=3")
        votes[vote[1]] = int(vote[2])
    return {name: count for name, count in votes.items() if count}


def _parse_numbers(row: dict[str, str], column: str, count: int) -> tuple[float, ...]:
    numbers = tuple(float(text) for text in NUMBER.findall(row.get(column, "")))
    if len(numbers) not in (0, count):
        raise ValueError(f"{column} has {len(numbers)} numbers; expected {count}")
    return numbers
