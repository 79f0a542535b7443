"""One's own images: folders and tables, splits by hash, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.made_up import write_png
from training.datasets.folder import HELD_OUT, load_split, read_records, split_counts
from training.datasets.records import DatasetError, Part, Split


def noise(path: Path, seed: int) -> Path:
    return write_png(path, np.random.default_rng(seed).integers(0, 256, (6, 6)))


def write_classes(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    for name, count in counts.items():
        for i in range(count):
            seed += 1
            noise(root / name / f"{i}.png", seed)
    return root


def names(split: Split) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in split.paths]


# --- folders -----------------------------------------------------------------------------------


def test_a_folder_a_class(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {"sad": 5, "happy": 10, "odd one": 1})
    parts = {part: load_split(root, part) for part in ("train", "validation", "final")}
    assert parts["train"].labels == ("happy", "odd one", "sad")
    assert len(parts["final"]) == 16
    assert sorted(names(parts["train"]) + names(parts["validation"])) == sorted(
        names(parts["final"])
    )
    # A fifth of each class; the only image of a class is learnt from.
    assert np.bincount(parts["validation"].classes, minlength=3).tolist() == [2, 0, 1]
    for split in parts.values():
        assert [split.labels[c] for c in split.classes] == [p.parent.name for p in split.paths]


def test_the_same_images_are_held_out_wherever_they_lie(tmp_path: Path) -> None:
    here = load_split(write_classes(tmp_path / "here", {"a": 10, "b": 10}), "validation")
    there = load_split(write_classes(tmp_path / "there", {"a": 10, "b": 10}), "validation")
    assert names(here) == names(there)
    assert len(here) == 2 * 10 // HELD_OUT


def test_copies_never_fall_on_two_sides(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {"a": 10, "b": 10})
    for path in list((root / "a").iterdir()):
        path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
    held_out = load_split(root, "validation")
    digests = {p.read_bytes() for p in held_out.paths}
    assert not digests & {p.read_bytes() for p in load_split(root, "train").paths}
    assert (held_out.classes == 0).sum() == 4, "two images and their copies"


def test_given_splits_are_kept(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"happy": 4, "sad": 3})
    write_classes(tmp_path / "Valid", {"happy": 2}, seed=50)
    write_classes(tmp_path / "test", {"sad": 1, "angry": 1}, seed=90)
    splits = {part: load_split(tmp_path, part) for part in ("train", "validation", "final", "test")}
    assert [len(split) for split in splits.values()] == [7, 2, 9, 2]
    assert {split.labels for split in splits.values()} == {("angry", "happy", "sad")}


def test_every_image_can_be_asked_for_whatever_its_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"happy": 4, "sad": 3})
    write_classes(tmp_path / "test", {"sad": 1}, seed=90)
    assert len(load_split(tmp_path, "all")) == 8
    assert split_counts(tmp_path) == {"train": 7, "test": 1}


@pytest.mark.parametrize(("folder", "part"), [("test", "test"), ("val", "validation")])
def test_images_to_measure_on_may_be_all_that_there_are(
    tmp_path: Path, folder: str, part: Part
) -> None:
    write_classes(tmp_path / folder, {"happy": 2, "sad": 1})
    split = load_split(tmp_path, part)
    assert (len(split), split.labels) == (3, ("happy", "sad"))
    with pytest.raises(DatasetError, match=f"train/ is missing, every image is for {part};"):
        load_split(tmp_path, "train")
    if part == "test":
        with pytest.raises(DatasetError, match="for the validation split, every image is for test"):
            load_split(tmp_path, "validation")


def test_a_folder_called_test_beside_classes_is_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path, {"test": 2, "exam": 3})
    assert load_split(tmp_path, "final").labels == ("exam", "test")


def test_training_images_are_held_out_where_only_they_are_given(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"happy": 5, "sad": 5})
    assert (len(load_split(tmp_path, "train")), len(load_split(tmp_path, "validation"))) == (8, 2)


def test_files_that_are_no_images_stay_for_preparation_to_count(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {"a": 2, "b": 2})
    (root / "a" / "notes.txt").write_text("not an image")
    (root / "a" / ".DS_Store").write_text("hidden")
    noise(root / "b" / "deeper" / "x.png", 99)
    assert len(load_split(root, "final")) == 6
    assert "a/notes.txt" in names(load_split(root, "final"))


# --- tables ------------------------------------------------------------------------------------


def write_table(root: Path, text: str) -> Path:
    for index, name in enumerate(("1.png", "2.png", "3.png", "4.png")):
        noise(root / "photos" / name, index)
    table = root / "labels.csv"
    table.write_text(text, encoding="utf-8")
    return table


def test_a_table_with_everything(tmp_path: Path) -> None:
    points = "10 20 30 20 20 30 12 40 28 40"
    table = write_table(
        tmp_path,
        "\ufeffpath,label,split,votes,box,landmarks,comment\n"
        'photos/1.png,happy,train,happy=6 sad=4,"1, 2, 30.5, 40",,x\n'
        f"photos/2.png,sad,training,,,{points},\n"
        "photos/3.png,,train,sad=3; happy=3,,,\n"
        "photos/4.png,,valid,sad=3,,,\n",
    )
    train = load_split(table, "train")
    assert train.labels == ("happy", "sad")
    assert names(train) == ["photos/1.png", "photos/2.png"]
    np.testing.assert_allclose(train.targets, [[0.6, 0.4], [0.0, 1.0]])
    np.testing.assert_array_equal(train.classes, [0, 1])
    assert train.boxes is not None
    assert train.landmarks is not None
    np.testing.assert_array_equal(train.boxes[0], np.array([1, 2, 30.5, 40], np.float32))
    assert np.isnan(train.boxes[1]).all()
    assert np.isnan(train.landmarks[0]).all()
    np.testing.assert_array_equal(
        train.landmarks[1], np.reshape([*map(int, points.split())], (5, 2))
    )
    every_vote = load_split(table, "train", majority_only=False)
    np.testing.assert_array_equal(every_vote.classes, [0, 1, -1])
    np.testing.assert_allclose(every_vote.targets[2], [0.5, 0.5])
    validation = load_split(table, "validation")
    assert (names(validation), validation.classes.tolist()) == (["photos/4.png"], [1])
    assert validation.boxes is None


def test_path_and_label_are_enough(tmp_path: Path) -> None:
    table = write_table(
        tmp_path, "path,label\nphotos/1.png,a\nphotos/2.png,a\nphotos/3.png,b\nphotos/4.png,b\n"
    )
    assert (len(load_split(table, "train")), len(load_split(table, "validation"))) == (2, 2)
    absolute = tmp_path / "photos" / "1.png"
    table.write_text(f"path,label\n{absolute},a\nmissing.png,b\n")
    assert [record.path for record in read_records(table)] == [absolute, tmp_path / "missing.png"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (",happy,,,,", "expected a path and a label, or votes"),
        ("x.png,,,,,", "expected a path and a label, or votes"),
        ("x.png,happy,later,,,", "split 'later'; expected train, valid or test"),
        ("x.png,,,happy:7,,", "votes 'happy:7'; expected CLASS=NUMBER, such as happy=7 sad=3"),
        ("x.png,,,happy=7 sad,,", "votes 'happy=7 sad'; expected CLASS=NUMBER"),
        ("x.png,,,happy=,,", "votes 'happy='; expected CLASS=NUMBER"),
        ("x.png,smiling,,happy=7,,", "label smiling is not the class with the most votes"),
        ("x.png,sad,,happy=7 sad=3,,", "label sad is not the class with the most votes"),
        ("x.png,happy,,,1 2 3,", "box has 3 numbers; expected 4"),
        ("x.png,happy,,,,1 2 3", "landmarks has 3 numbers; expected 10"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    table = write_table(
        tmp_path, f"path,label,split,votes,box,landmarks\nphotos/1.png,a,,,,\n{row}\n"
    )
    with pytest.raises(DatasetError, match=rf"labels\.csv, row 2: {message}"):
        load_split(table, "train")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file,class", "no column path and no column label, found file, class; expected path and"),
        ("path,class", "no column label, found path, class;"),
        ("file,votes", "no column path, found file, votes;"),
        ("path;label", "no column path and no column label, found path;label;"),
    ],
)
def test_columns_that_are_missing_are_named(tmp_path: Path, header: str, message: str) -> None:
    table = write_table(tmp_path, f"{header}\nphotos/1.png,a\n")
    with pytest.raises(DatasetError, match=rf"labels\.csv: {message}"):
        load_split(table, "train")


def test_a_tie_that_the_label_breaks_is_no_contradiction(tmp_path: Path) -> None:
    table = write_table(tmp_path, "path,label,votes\nphotos/1.png,sad,happy=3 sad=3\n")
    assert read_records(table)[0].winner() == "sad"


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="Parquet is read where pyarrow is installed")
    noise(tmp_path / "photo.png", 1).rename(tmp_path / "photo.parquet")
    with pytest.raises(DatasetError, match=r"photo\.parquet: not a Parquet file \("):
        load_split(tmp_path / "photo.parquet", "train")


def test_a_table_in_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet is read where pyarrow is installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_table(tmp_path, "")
    columns = {
        "path": ["photos/1.png", "photos/2.png"],
        "label": ["a", "b"],
        "split": ["train", None],
        "box": [[1.0, 2.0, 3.5, 4.0], None],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "labels.parquet")
    split = load_split(tmp_path / "labels.parquet", "final")
    assert split.classes.tolist() == [0, 1]
    assert split.boxes is not None
    assert split.boxes[0].tolist() == [1.0, 2.0, 3.5, 4.0]


def test_parquet_without_pyarrow_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    table = tmp_path / "labels.parquet"
    table.touch()
    with pytest.raises(DatasetError, match=r"needs pyarrow \(pip install pyarrow\); or save it as"):
        load_split(table, "train")


# --- refusals ----------------------------------------------------------------------------------


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file or folder; expected a folder a class"):
        load_split(tmp_path / "nowhere", "train")
    with pytest.raises(DatasetError, match="no images in folders; expected a folder a class"):
        load_split(tmp_path, "train")
    (tmp_path / "empty.csv").write_text("path,label\n")
    with pytest.raises(DatasetError, match=r"empty\.csv: no rows"):
        load_split(tmp_path / "empty.csv", "train")
    (tmp_path / "latin.csv").write_bytes("path,label\né.png,a\n".encode("latin-1"))
    with pytest.raises(DatasetError, match="not a CSV file in UTF-8"):
        load_split(tmp_path / "latin.csv", "train")


def test_one_class_is_refused(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {"only": 3})
    with pytest.raises(DatasetError, match=r"two or more classes are needed, found only only"):
        load_split(root, "train")
    assert len(load_split(root, "all")) == 3, "but it can be measured on"


def test_a_table_without_rows_to_learn_from_says_so(tmp_path: Path) -> None:
    table = write_table(tmp_path, "path,label,split\nphotos/1.png,a,val\nphotos/2.png,b,val\n")
    with pytest.raises(
        DatasetError, match="no row has split train, every image is for validation;"
    ):
        load_split(table, "train")


def test_a_part_without_images_is_refused(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(DatasetError, match="no image with a label for the validation split"):
        load_split(root, "validation")
    with pytest.raises(DatasetError, match="no image with a label for the test split"):
        load_split(root, "test")
