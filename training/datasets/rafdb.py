"""RAF-DB basic (Li et al., CVPR 2017) in its official layout: seven classes.

    ROOT/EmoLabel/list_patition_label.txt    (lines: train_00001.jpg 5)
    ROOT/Image/aligned/train_00001_aligned.jpg ...   or   ROOT/Image/original/train_00001.jpg ...

The aligned images are taken where both are there. 12,271 training and 3,068 test images, told
apart by their names. There is no official validation split: one training image in ten, by a hash
of its name, is kept for it, and the final training takes them all.
"""

from __future__ import annotations

from pathlib import Path

from training.datasets.records import (
    DatasetError,
    Part,
    Split,
    hard_split,
    part_of_training,
    require_files,
)

LABELS = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
LABEL_FILE = Path("EmoLabel") / "list_patition_label.txt"  # spelt so by its authors
ALIGNED, ORIGINAL = Path("Image") / "aligned", Path("Image") / "original"
LAYOUT = (
    f"RAF-DB's layout, {LABEL_FILE} (lines: train_00001.jpg 5) beside "
    f"{ALIGNED}/train_00001_aligned.jpg or {ORIGINAL}/train_00001.jpg"
)


def load_split(root: Path, part: Part) -> Split:
    """The images of `part`. Raises DatasetError where a file is missing or a line is malformed."""
    prefix = "test_" if part == "test" else "train_"
    rows = [(name, label) for name, label in _read_labels(root) if name.startswith(prefix)]
    if not rows:
        raise DatasetError(f"{root / LABEL_FILE}: names no image {prefix}*.jpg")
    paths = [_image_path(root, name) for name, _ in rows]
    require_files(paths, LAYOUT)
    split = hard_split(LABELS, paths, [label for _, label in rows])
    return split if part in ("final", "test") else part_of_training(split, part)


def _image_path(root: Path, name: str) -> Path:
    if (root / ALIGNED).is_dir():
        return root / ALIGNED / f"{Path(name).stem}_aligned.jpg"
    return root / ORIGINAL / name


def _read_labels(root: Path) -> list[tuple[str, int]]:
    table = root / LABEL_FILE
    if not table.is_file():
        raise DatasetError(f"{table}: no such file; expected {LAYOUT}")
    rows = []
    for number, line in enumerate(table.read_text().splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in {"1", "2", "3", "4", "5", "6", "7"}:
            raise DatasetError(f"{table}, line {number}: expected a name and a class from 1 to 7")
        rows.append((words[0], int(words[1]) - 1))
    return rows
