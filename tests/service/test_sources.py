from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.errors import ImageFileError
from service.sources import drawn_path, find_sources, require_there


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


def test_names_that_cannot_be_looked_at_are_for_those_who_read_them(tmp_path: Path) -> None:
    name = "x" * 5000
    assert find_sources([name, str(tmp_path / "none")]) == [Path(name), tmp_path / "none"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_what_may_not_be_looked_into_is_not_left_out_without_a_word(tmp_path: Path) -> None:
    for name in ("a.jpg", "closed/b.jpg", "listed/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "d.jpg").symlink_to("closed/b.jpg")
    script = (
        "import sys; from service.sources import find_sources; print(*find_sources(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "."]
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("nothing is closed to root")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    (tmp_path / "closed").chmod(0)
    (tmp_path / "listed").chmod(0o400)
    try:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        for name in ("closed", "listed"):
            (tmp_path / name).chmod(0o700)
    assert (done.stdout, done.stderr) == ("a.jpg closed d.jpg listed/c.jpg\n", "")


def test_a_name_that_is_empty_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photo.jpg").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageFileError, match="A name is empty"):
        find_sources([""])


def test_patterns_match_as_globs_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["1.jpg", "a/2.jpg", "a/b/3.png", "a/b/a/4.jpg", ".h/5.jpg", "a/.6.jpg", "[a]/7.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    patterns = [
        "**",
        "**/*.jpg",
        "a/**",
        "**/a/**/*.jpg",
        "**/b/*",
        "*/*.jpg",
        "[[]a]/**/7*",
        "**/**",
    ]
    for pattern in (*patterns, *(f"{tmp_path}/{p}" for p in patterns)):
        matches = map(Path, glob.iglob(pattern, recursive=True))  # noqa: PTH207 - the reference
        wanted = {match for match in matches if match.is_file()}
        found = find_sources([pattern])
        assert (set(found), len(found)) == (wanted, len(wanted)), pattern


def test_links_do_not_lead_a_pattern_in_circles(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    for link in ("one", "two"):
        (tmp_path / link).symlink_to(".")
    assert find_sources([f"{tmp_path}/**/*.jpg"]) == [tmp_path / "photo.jpg"]


def test_names_of_a_long_job_are_looked_for_first(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    require_there([str(tmp_path), str(tmp_path / "photo.jpg"), "-", "s3://bucket", "none/*.jpg"])
    for name in (str(tmp_path / "none"), str(tmp_path / "photo.jpg" / "none"), "x" * 5000):
        with pytest.raises(ImageFileError, match=r": no such file or folder\."):
            require_there([str(tmp_path), name])


def test_of_the_folder_for_drawn_copies_originals_are_read(tmp_path: Path) -> None:
    photos = [tmp_path / name for name in ("a.jpg", "photos/b.jpg", "photos/c.png")]
    copies = [drawn_path(photo, tmp_path / "photos", ".jpg") for photo in photos]
    for path in (*photos, *copies):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert find_sources([str(tmp_path)], drawn=tmp_path / "photos") == photos
