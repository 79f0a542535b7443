from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import ImageFileError
from service.sources import find_sources


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
