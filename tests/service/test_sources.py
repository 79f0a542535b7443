from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import ImageFileError
from service.sources import find_sources, require_there


def test_a_folder_means_its_pictures_those_of_other_kinds_too(tmp_path: Path) -> None:
    for name in ("b10.JPG", "b2.jpg", "below/c.heic", "notes.txt", "none"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in find_sources([str(tmp_path)])]
    assert found == ["b2.jpg", "b10.JPG", "below/c.heic"]
    assert find_sources([str(tmp_path / "none")]) == [tmp_path / "none"], "a file that is named"


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ImageFileError, match="no photos in this folder"):
        find_sources([str(tmp_path)])


def test_a_name_that_no_file_can_have_is_an_error() -> None:
    with pytest.raises(ImageFileError, match=r"cannot be read \(File name too long\)"):
        find_sources(["x" * 5000])


def test_names_of_a_long_job_are_looked_for_first(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    require_there([str(tmp_path), str(tmp_path / "photo.jpg"), "-", "s3://bucket", "none/*.jpg"])
    for name in (str(tmp_path / "none"), str(tmp_path / "photo.jpg" / "none"), "x" * 5000):
        with pytest.raises(ImageFileError, match=r": no such file or folder\."):
            require_there([str(tmp_path), name])
