"""Places where nothing can be written: one line, and where that can be told, before any photo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.cli import main
from service.local import Recognizer
from service.video import VideoWriter

PATIENCE_SECONDS = 60
FULL = Path("/dev/full")
NOWHERE = Path("/proc/none")  # where nobody can make a folder, the administrator neither
needs_linux = pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full and /proc")


@pytest.fixture
def photo(tmp_path: Path, portrait_jpeg: bytes) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(portrait_jpeg)
    return path


@pytest.fixture
def _no_photo_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(*_: object, **__: object) -> None:
        raise AssertionError("a photo was read")

    monkeypatch.setattr(Recognizer, "_submit", submit)


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


@pytest.mark.usefixtures("_no_photo_is_read")
@pytest.mark.parametrize(
    "flags",
    [
        ["--draw", "photo.jpg"],
        ["--draw", "photo.jpg/drawn"],
        ["--output", "photo.jpg/answers.csv"],
        ["--output", "photo.jpg/answers", "--format", "parquet"],
    ],
)
def test_a_file_is_no_folder(
    photo: Path,
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(photo.parent)
    assert main(["predict", "photo.jpg", *flags]) == 1
    assert only_line(capsys) == "lan-fer: photo.jpg is a file where a folder is needed."


@needs_linux
@pytest.mark.usefixtures("_no_photo_is_read")
@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--draw", NOWHERE], f"{NOWHERE}: cannot be written (No such file or directory)."),
        (["-o", NOWHERE / "a.csv"], f"{NOWHERE}: cannot be written (No such file or directory)."),
        (["-o", "/proc/a.csv"], "/proc/a.csv: cannot be written (No such file or directory)."),
        (["-o", NOWHERE, "--format", "parquet"], f"{NOWHERE}: cannot be written"),
        (["-o", FULL, "--format", "csv"], f"{FULL}: cannot be written (No space left on device)."),
    ],
)
def test_place_that_takes_nothing_is_told_before_a_photo_is_read(
    photo: Path, flags: list[object], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(photo), *map(str, flags)]) == 1
    assert only_line(capsys).startswith(f"lan-fer: {why}")


@needs_linux
def test_disk_that_fills_up_is_one_line(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(photo), "-o", str(FULL), "--format", "jsonl"]) == 1
    assert "No space left on device" in only_line(capsys)


@needs_linux
@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("command", [["predict", "photo.jpg"], ["model", "info"]])
def test_standard_output_on_a_full_disk_is_one_line(
    photo: Path, command: list[str], buffered: str
) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", *command],
            cwd=photo.parent,
            env={**os.environ, "PYTHONPATH": str(Path.cwd()), "PYTHONUNBUFFERED": buffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    wanted = "lan-fer: standard output: cannot be written (No space left on device).\n"
    assert (done.returncode, done.stderr) == (1, wanted)


@pytest.mark.usefixtures("_no_photo_is_read")
@pytest.mark.parametrize(
    "flags",
    [
        ["--draw", "."],
        ["--draw", "link"],
        ["-o", "photo.jpg", "--format", "csv", "--overwrite"],
        ["-o", "hard.csv", "--overwrite"],
    ],
)
def test_nothing_is_written_over_what_is_read(
    photo: Path,
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(photo.parent)
    Path("link").symlink_to(".")
    Path("hard.csv").hardlink_to(photo)
    content = photo.read_bytes()
    assert main(["predict", "photo.jpg", *flags]) == 1
    assert only_line(capsys) == (
        "lan-fer: photo.jpg: is to be read, and would be written over; choose another place."
    )
    assert photo.read_bytes() == content


def test_pictures_drawn_before_are_no_photos(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photo.parent)
    for names in ([".", "--draw", "drawn"], [str(photo.parent), "--draw", "drawn/again"]):
        for _ in range(2):
            assert main(["predict", *names]) == 0
            capsys.readouterr()
    assert sum(path.is_file() for path in Path("drawn").rglob("*")) == 3


def test_an_output_stays_where_the_pictures_have_no_place(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "answers.jsonl"
    output.write_text("answers of yesterday\n")
    command = ["predict", str(photo), "-o", str(output), "--overwrite", "--draw", str(photo)]
    assert main(command) == 1
    assert "is a file" in only_line(capsys)
    assert output.read_text() == "answers of yesterday\n"


@pytest.mark.usefixtures("_no_photo_is_read")
@pytest.mark.parametrize("flag", ["--draw", "--timeline"])
def test_a_videos_pictures_too(
    photo: Path, portrait: NDArray[np.uint8], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = photo.with_name("clip.mp4")
    writer = VideoWriter(clip, 10.0)
    writer.write(portrait)
    writer.close()
    assert main(["predict", str(clip), flag, str(photo / "below.png")]) == 1
    assert only_line(capsys) == f"lan-fer: {photo} is a file where a folder is needed."


def test_output_of_another_kind_is_not_gone_on_with(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "answers.csv"
    output.write_bytes(b"source,\xff\xfe\nphoto,1\n")
    assert main(["predict", str(photo), "-o", str(output), "--resume"]) == 1
    assert only_line(capsys) == f"lan-fer: {output}: holds lines that are not lan-fer's."
