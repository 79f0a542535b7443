"""The lines of RAN's lists, and finding their images in a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.datasets.lists import read_list, select
from training.datasets.records import DatasetError, Split, hard_split

HASH = "6d34ea022ac4c6f22f4a5c4aaf85be7bdb06bd96223bc12b96588c28"


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        pytest.param("4/fer0032228.jpg", ("fer0032228", 4), id="Pose-FERPlus"),
        pytest.param("3/test_0009_aligned.jpg", ("test_0009", 3), id="Pose-RAF-DB"),
        pytest.param(f"6/{HASH}.jpg", (HASH, 6), id="Pose-AffectNet, 30 degrees"),
        pytest.param(f"4/{HASH}/8.jpg", (HASH, 4), id="Pose-AffectNet, 45 degrees"),
        pytest.param(f"val/0/{HASH}/", (HASH, 0), id="Occlusion-AffectNet"),
        pytest.param("1_fer0034656.png 8 0", ("fer0034656", 1), id="Occlusion-FERPlus"),
        pytest.param("test_0003_aligned 3 4", ("test_0003", 3), id="Occlusion-RAF-DB"),
    ],
)
def test_every_published_kind_of_line(tmp_path: Path, line: str, entry: tuple[str, int]) -> None:
    assert read_list(write(tmp_path / "list.txt", "", line)) == dict([entry])


@pytest.mark.parametrize("line", ["1247 7", "3", "fer0032228.jpg", "four/fer0032228.jpg"])
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "list.txt", "4/fer0032228.jpg", line)
    with pytest.raises(DatasetError, match=r"list\.txt, line 2: expected a class and a name"):
        read_list(path)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"pose_30\.txt: no such file; expected lines such as"):
        read_list(tmp_path / "pose_30.txt")


@pytest.fixture
def split() -> Split:
    """Four images of three classes, the last without a majority."""
    paths = [Path(f"FER2013Test/fer003222{i}.png") for i in range(4)]
    hard = hard_split(("neutral", "happiness", "surprise"), paths, [0, 1, 2, 0])
    return Split(hard.labels, hard.paths, hard.targets, np.array([0, 1, 2, -1]))


def test_images_are_found_by_stem_with_the_lists_labels(tmp_path: Path, split: Split) -> None:
    lines = ("2/fer0032223.jpg", "1/fer0032221.jpg", "2/fer0032220.jpg", "0/fer0032299.jpg")
    found = select(split, write(tmp_path / "list.txt", *lines, "1/fer0032221.jpg"))
    assert [path.name for path in found.split.paths] == [
        "fer0032223.png",
        "fer0032221.png",
        "fer0032220.png",
    ]
    np.testing.assert_array_equal(found.split.classes, [2, 1, 2])
    np.testing.assert_array_equal(found.split.targets, np.eye(3)[[2, 1, 2]])
    assert (found.listed, found.other_classes, found.relabelled) == (4, 0, 2)
    assert found.summary() == (
        "3 of 4 listed images found; 2 have another label in the data set; "
        "measured against the list's labels"
    )


def test_classes_that_the_split_lacks_are_left_out_and_counted(
    tmp_path: Path, split: Split
) -> None:
    found = select(split, write(tmp_path / "list.txt", "0/fer0032220.jpg", "7/fer0032221.jpg"))
    assert len(found.split) == 1
    assert found.other_classes == 1
    assert "1 of 2 listed images found; 1 are of other classes" in found.summary()


def test_original_and_aligned_images_of_rafdb_are_the_same_faces(tmp_path: Path) -> None:
    path = write(tmp_path / "list.txt", "1/test_0004_aligned.jpg")
    for name in ("test_0004.jpg", "test_0004_aligned.jpg"):
        assert len(select(hard_split(("a", "b"), [Path(name)], [1]), path).split) == 1


def test_a_list_of_other_images_is_refused(tmp_path: Path, split: Split) -> None:
    path = write(tmp_path / "list.txt", f"4/{HASH}.jpg")
    with pytest.raises(DatasetError, match="none of its 1 images is in the split"):
        select(split, path)
