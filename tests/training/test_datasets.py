"""RAF-DB, AffectNet and KDEF: their official layouts in miniature, splits and refusals."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.training.made_up import write_png
from training.datasets import affectnet, kdef, rafdb
from training.datasets.records import (
    DatasetError,
    Split,
    concatenate,
    hard_split,
    part_of_training,
    require_files,
)
from training.datasets.registry import DATASETS, Choice, dataset_of, find_dataset


def picture(path: Path) -> Path:
    """A small image, whatever the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    png = write_png(path.with_suffix(".png"), np.full((4, 4), len(path.stem)))
    return png.rename(path)


def stems(split: Split) -> set[str]:
    return {path.stem for path in split.paths}


# --- RAF-DB ------------------------------------------------------------------------------------

RAF_CLASSES = {f"train_{i:05}.jpg": 1 + i % 7 for i in range(1, 31)} | {
    f"test_{i:04}.jpg": 1 + i % 7 for i in range(1, 8)
}


def write_rafdb(root: Path, *, aligned: bool = True) -> Path:
    table = root / "EmoLabel" / "list_patition_label.txt"
    table.parent.mkdir(parents=True)
    table.write_text("".join(f"{name} {label}\n" for name, label in RAF_CLASSES.items()))
    for name in RAF_CLASSES:
        if aligned:
            picture(root / "Image" / "aligned" / f"{Path(name).stem}_aligned.jpg")
        else:
            picture(root / "Image" / "original" / name)
    return root


@pytest.mark.parametrize(("aligned", "suffix"), [(True, "_aligned"), (False, "")])
def test_rafdb_splits_by_name(tmp_path: Path, aligned: bool, suffix: str) -> None:
    root = write_rafdb(tmp_path, aligned=aligned)
    train, validation, final, test = (
        rafdb.load_split(root, part) for part in ("train", "validation", "final", "test")
    )
    assert stems(test) == {f"test_{i:04}{suffix}" for i in range(1, 8)}
    assert len(final) == 30
    assert stems(train) | stems(validation) == stems(final)
    assert not stems(train) & stems(validation)
    assert len(validation) >= 1
    assert all(path.is_file() for path in (*final.paths, *test.paths))


def test_rafdb_classes_are_counted_from_one(tmp_path: Path) -> None:
    test = rafdb.load_split(write_rafdb(tmp_path), "test")
    assert test.labels == (
        *("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"),
    )
    np.testing.assert_array_equal(test.classes, [1, 2, 3, 4, 5, 6, 0])
    np.testing.assert_array_equal(test.targets, np.eye(7)[test.classes])


def test_rafdb_aligned_images_go_first(tmp_path: Path) -> None:
    root = write_rafdb(tmp_path)
    picture(root / "Image" / "original" / "test_0001.jpg")
    assert {p.parent.name for p in rafdb.load_split(root, "test").paths} == {"aligned"}


def test_rafdb_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"list_patition_label\.txt: no such file; expected RAF"):
        rafdb.load_split(tmp_path, "train")
    (write_rafdb(tmp_path) / "Image" / "aligned" / "test_0003_aligned.jpg").unlink()
    expected = r"test_0003_aligned\.jpg: no such file \(1 of 7 images are missing\); expected RAF"
    with pytest.raises(DatasetError, match=expected):
        rafdb.load_split(tmp_path, "test")


@pytest.mark.parametrize("line", ["train_00001.jpg", "train_00001.jpg 0", "train_00001.jpg 8"])
def test_rafdb_names_a_malformed_line(tmp_path: Path, line: str) -> None:
    table = write_rafdb(tmp_path) / "EmoLabel" / "list_patition_label.txt"
    table.write_text(f"train_00002.jpg 5\n{line}\n")
    with pytest.raises(DatasetError, match="line 2: expected a name and a class"):
        rafdb.load_split(tmp_path, "train")


def test_rafdb_without_test_images_is_refused(tmp_path: Path) -> None:
    table = write_rafdb(tmp_path) / "EmoLabel" / "list_patition_label.txt"
    table.write_text("train_00002.jpg 5\n\n")
    with pytest.raises(DatasetError, match="names no image test_"):
        rafdb.load_split(tmp_path, "test")


# --- AffectNet ---------------------------------------------------------------------------------

HEADER = ",".join(affectnet.COLUMNS)


def affectnet_row(name: str, label: int) -> str:
    return f"689/{name}.jpg,0,0,4,4,1.0;2.0;3.0;4.0,{label},0.1,-0.2"


def write_affectnet_tables(root: Path, *, lists: str = "", images: str = "") -> Path:
    """Training: three of each code from 0 to 10; validation: one of each."""
    folder = root / lists
    folder.mkdir(parents=True, exist_ok=True)
    for table, prefix, count in (("training", "a", 33), ("validation", "b", 11)):
        rows = [affectnet_row(f"{prefix}{i}", i % 11) for i in range(count)]
        (folder / f"{table}.csv").write_text("\n".join([HEADER, *rows]) + "\n")
        for i in range(count):
            picture(root / images / "689" / f"{prefix}{i}.jpg")
    return root


def write_affectnet_numbered(root: Path) -> Path:
    for folder, count in (("train_set", 33), ("val_set", 11)):
        for i in range(count):
            picture(root / folder / "images" / f"{i}.jpg")
            annotation = root / folder / "annotations" / f"{i}_exp.npy"
            annotation.parent.mkdir(parents=True, exist_ok=True)
            np.save(annotation, np.array(str(i % 11)))  # official: a string
            np.save(annotation.with_name(f"{i}_val.npy"), np.array("0.5"))
    return root


@pytest.mark.parametrize("form", ["tables", "official folders", "numbered"])
@pytest.mark.parametrize("classes", [8, 7])
def test_affectnet_in_each_form(tmp_path: Path, form: str, classes: int) -> None:
    if form == "numbered":
        root = write_affectnet_numbered(tmp_path)
    elif form == "tables":
        root = write_affectnet_tables(tmp_path)
    else:
        root = write_affectnet_tables(
            tmp_path, lists="Manually_Annotated_file_lists", images="Manually_Annotated_Images"
        )
    test = affectnet.load_split(root, "test", classes=classes)
    assert test.labels == affectnet.LABELS[:classes]
    np.testing.assert_array_equal(test.classes, range(classes))
    final, train, validation = (
        affectnet.load_split(root, part, classes=classes)
        for part in ("final", "train", "validation")
    )
    assert len(final) == 3 * classes
    assert stems(train) | stems(validation) == stems(final)
    assert not stems(train) & stems(validation)
    assert set(final.classes) == set(range(classes))


def test_affectnet_classes_are_in_its_own_order() -> None:
    assert (
        *("neutral", "happiness", "sadness", "surprise"),
        *("fear", "disgust", "anger", "contempt"),
    ) == affectnet.LABELS


def test_affectnet_validation_table_without_a_header(tmp_path: Path) -> None:
    table = write_affectnet_tables(tmp_path) / "validation.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[1:]))
    assert len(affectnet.load_split(tmp_path, "test")) == 8


def test_affectnet_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"training\.csv: no such file; expected one of Affect"):
        affectnet.load_split(tmp_path, "train")
    (write_affectnet_tables(tmp_path) / "689" / "b3.jpg").unlink()
    with pytest.raises(DatasetError, match=r"689/b3\.jpg: no such file \(1 of 8 images"):
        affectnet.load_split(tmp_path, "test")


def test_affectnet_names_a_missing_numbered_image(tmp_path: Path) -> None:
    root = write_affectnet_numbered(tmp_path)
    (root / "val_set" / "images" / "2.jpg").unlink()
    with pytest.raises(DatasetError, match=r"val_set/images/2\.jpg: no such file"):
        affectnet.load_split(root, "test")
    (root / "val_set" / "annotations" / "2_exp.npy").write_bytes(b"not an array")
    with pytest.raises(DatasetError, match=r"2_exp\.npy: not an expression code"):
        affectnet.load_split(root, "test")


def test_affectnet_names_empty_annotations(tmp_path: Path) -> None:
    (tmp_path / "val_set").mkdir()
    with pytest.raises(DatasetError, match=r"annotations: no N_exp\.npy files; expected"):
        affectnet.load_split(tmp_path, "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER}\n689/a.jpg,0,0\n", "line 2: expected a path and a class code"),
        (f"{HEADER}\n{affectnet_row('a', 1)}\n689/b.jpg,0,0,4,4,,happy,0,0\n", "line 3: expected"),
        ("subDirectory_filePath,valence\n", "no column expression"),
        (f"{HEADER}\n{affectnet_row('a', 10)}\n", "no image with an expression"),
    ],
)
def test_affectnet_names_a_malformed_table(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "training.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        affectnet.load_split(tmp_path, "train")


# --- KDEF --------------------------------------------------------------------------------------


def kdef_names(people: int, sessions: str = "AB") -> list[str]:
    return [
        f"{session}{sex}{number:02}{expression}{angle}.JPG"
        for session in sessions
        for sex in "FM"
        for number in range(1, people + 1)
        for expression in kdef.EXPRESSIONS
        for angle in kdef.ANGLES
    ]


@pytest.fixture(scope="module")
def kdef_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five women and five men in two sessions, with what else the archive has."""
    root = tmp_path_factory.mktemp("kdef")
    for name in kdef_names(5):
        path = root / "KDEF" / name[:4] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "KDEF" / "AF01" / "AF31V.JPG").touch()
    (root / "KDEF" / "Thumbs.db").touch()
    return root


def people(split: Split) -> set[str]:
    return {path.stem[1:4] for path in split.paths}


def test_kdef_names_are_read(kdef_root: Path) -> None:
    photos = kdef.find_photos(kdef_root)
    assert len(photos) == 2 * 10 * 7 * 5
    straight = next(p for p in photos if p.path.name == "BM03SUS.JPG")
    assert (straight.person, straight.expression, straight.angle) == ("M03", "SU", "S")
    turned = next(p for p in photos if p.path.name == "AF05ANHR.JPG")
    assert (turned.person, turned.expression, turned.angle) == ("F05", "AN", "HR")


def test_kdef_labels_follow_the_codes(kdef_root: Path) -> None:
    split = kdef.load_split(kdef_root, "final", fold=0, by="person")
    code = {"AF": "fear", "AN": "anger", "DI": "disgust", "HA": "happiness"}
    code |= {"NE": "neutral", "SA": "sadness", "SU": "surprise"}
    named = [split.labels[index] for index in split.classes]
    assert named == [code[path.stem[4:6]] for path in split.paths]


@pytest.mark.parametrize("by", ["images", "person"])
def test_kdef_folds_cover_all_photos_once(kdef_root: Path, by: kdef.FoldsBy) -> None:
    tests = [kdef.load_split(kdef_root, "test", fold=k, by=by) for k in range(10)]
    assert sum(len(test) for test in tests) == 700
    assert len(set.union(*map(stems, tests))) == 700
    assert {len(test) for test in tests} == {70}
    for test in tests:
        assert set(Counter(test.classes.tolist()).values()) == {10}, "expressions are even"


@pytest.mark.parametrize("by", ["images", "person"])
def test_kdef_parts_of_a_fold_do_not_meet(kdef_root: Path, by: kdef.FoldsBy) -> None:
    parts = {
        part: kdef.load_split(kdef_root, part, fold=9, by=by)
        for part in ("train", "validation", "final", "test")
    }
    assert [len(split) for split in parts.values()] == [560, 70, 630, 70]
    assert stems(parts["train"]) | stems(parts["validation"]) == stems(parts["final"])
    assert not stems(parts["final"]) & stems(parts["test"])
    following = kdef.load_split(kdef_root, "test", fold=0, by=by)
    assert stems(parts["validation"]) == stems(following)


def test_kdef_folds_by_person_keep_each_person_on_one_side(kdef_root: Path) -> None:
    for fold in range(10):
        test = kdef.load_split(kdef_root, "test", fold=fold, by="person")
        train = kdef.load_split(kdef_root, "train", fold=fold, by="person")
        validation = kdef.load_split(kdef_root, "validation", fold=fold, by="person")
        assert not people(test) & people(train)
        assert not people(test) & people(validation)
        assert not people(validation) & people(train)


def test_kdef_folds_by_images_do_not(kdef_root: Path) -> None:
    test = kdef.load_split(kdef_root, "test", fold=0, by="images")
    train = kdef.load_split(kdef_root, "train", fold=0, by="images")
    assert people(test) <= people(train)


def test_kdef_at_any_depth_in_any_case_and_once(tmp_path: Path) -> None:
    names = kdef_names(5, "A")
    for folder in ("flat", "copy"):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name.lower()).touch()
    assert len(kdef.find_photos(tmp_path)) == len(names)


def test_kdef_refusals(tmp_path: Path, kdef_root: Path) -> None:
    with pytest.raises(DatasetError, match=r"no file named as AF01ANS\.JPG; expected KDEF"):
        kdef.load_split(tmp_path, "train", fold=0, by="person")
    with pytest.raises(DatasetError, match="fold 10: KDEF's folds are 0 to 9"):
        kdef.load_split(kdef_root, "train", fold=10, by="person")
    (tmp_path / "AF01ANS.JPG").touch()
    with pytest.raises(DatasetError, match="1 photos are too few for 10 folds"):
        kdef.load_split(tmp_path, "train", fold=0, by="person")


# --- what they share ---------------------------------------------------------------------------


def test_too_few_images_for_a_validation_split_are_refused() -> None:
    split = hard_split(("a", "b"), [Path("one.jpg")], [0])
    with pytest.raises(DatasetError, match="1 training images are too few"):
        part_of_training(part_of_training(split, "train"), "validation")


def test_require_files_accepts_what_is_there(tmp_path: Path) -> None:
    require_files([picture(tmp_path / "a.jpg")], "a layout")


def test_boxes_and_landmarks_stay_with_their_images() -> None:
    paths = [Path("a.jpg"), Path("b.jpg"), Path("c.jpg")]
    plain = hard_split(("x", "y"), paths, [0, 1, 1])
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    known = Split(plain.labels, plain.paths, plain.targets, plain.classes, boxes)
    assert known.hardened().boxes is not None
    part = known.subset(np.array([False, True, True]))
    assert part.boxes is not None
    np.testing.assert_array_equal(part.boxes, boxes[1:])
    both = concatenate(plain, part)
    assert both.boxes is not None
    assert both.landmarks is None
    assert np.isnan(both.boxes[:3]).all()
    np.testing.assert_array_equal(both.boxes[3:], boxes[1:])


@pytest.mark.parametrize("name", DATASETS)
def test_a_runs_data_set_is_known_by_what_the_run_says(name: str) -> None:
    dataset = DATASETS[name]
    assert dataset_of(dataset.title, dataset.protocol_of(Choice(fold=3), final=True)) == name
    assert not dataset_of("another", dataset.protocol)


def test_the_registry_names_each_data_set(kdef_root: Path, tmp_path: Path) -> None:
    assert set(DATASETS) == {
        *("ferplus", "rafdb", "affectnet8", "affectnet7", "kdef", "kdef-images", "folder"),
    }
    with pytest.raises(DatasetError, match="data set 'fer' is unknown; one of ferplus, rafdb"):
        find_dataset("fer")
    by_person = find_dataset("kdef").load(kdef_root, "test", Choice(fold=3))
    by_images = find_dataset("kdef-images").load(kdef_root, "test", Choice(fold=3))
    assert len(people(by_person)) == 1
    assert len(people(by_images)) == 10
    write_affectnet_numbered(tmp_path)
    assert len(find_dataset("affectnet7").load(tmp_path, "test", Choice()).labels) == 7
    assert len(find_dataset("affectnet8").load(tmp_path, "test", Choice()).labels) == 8
    rafdb_root = write_rafdb(tmp_path / "raf")
    assert len(find_dataset("rafdb").load(rafdb_root, "test", Choice())) == 7


def test_protocols_say_what_was_chosen() -> None:
    kdef_protocol = find_dataset("kdef").protocol_of(Choice(fold=3), final=False)
    assert kdef_protocol == "folds by person; fold 3 of 10 is the test; training"
    assert find_dataset("ferplus").protocol_of(Choice(), final=True) == (
        "majority, official label.csv; twins of the test split left out; training + validation"
    )
