from __future__ import annotations

import csv
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.cli import main

UInt8 = NDArray[np.uint8]
PATIENCE_SECONDS = 60


@pytest.fixture
def photos(tmp_path: Path, portrait: UInt8) -> Path:
    """Three that can be read (one without a face) and two that cannot."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    face = Image.fromarray(portrait)
    face.save(folder / "photo2.png")
    face.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "photo10.PNG")
    Image.new("RGB", (64, 48)).save(folder / "below" / "grey.jpg")
    (folder / "broken.jpg").write_bytes(b"no photo")
    (folder / "notes.txt").write_text("not read")
    return folder


def sources(output: str) -> list[str]:
    return [json.loads(line)["source"] for line in output.splitlines()]


def test_folder_to_json_lines(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(photos)]) == 1
    out, err = capsys.readouterr()
    names = ["below/grey.jpg", "photo2.png", "photo10.PNG"]
    assert sources(out) == [str(photos / name) for name in names]
    _, first, second = (json.loads(line) for line in out.splitlines())
    assert first["faces"][0]["expression"]["label"] == "happiness"
    assert first["faces"][0]["box"] != second["faces"][0]["box"]
    assert err.splitlines() == [
        "1 of 4 photos could not be read:",
        f"  {photos / 'broken.jpg'}: The bytes are no JPEG, PNG, WebP, GIF, BMP or TIFF image.",
    ]


def test_files_patterns_and_standard_input(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = f"{photos / 'below' / 'grey.jpg'}\n\n{photos / 'missing.png'}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(["predict", str(photos / "photo*.[pP]*"), "-", str(photos / "photo2.png")]) == 1
    out, err = capsys.readouterr()
    names = ["photo2.png", "photo10.PNG", "below/grey.jpg"]
    assert sources(out) == [str(photos / name) for name in names]
    missing = photos / "missing.png"
    assert f"  {missing}: The file cannot be read (No such file or directory)." in err.splitlines()


@pytest.mark.parametrize("name", ["none/*.jpg", "empty"])
def test_name_that_means_nothing_is_one_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(tmp_path / name)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lan-fer: {tmp_path / name}: no ")


def test_csv_has_a_row_a_face(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "answers.csv"
    assert main(["predict", str(photos), "-o", str(output), "--explain", "evidence"]) == 1
    grey, face, _ = csv.DictReader(output.read_text().splitlines())
    assert (grey["faces_found"], grey["face"], grey["expression"]) == ("0", "", "")
    assert (face["face"], face["expression"], face["width"]) == ("0", "happiness", "512")
    probabilities = [float(value) for name, value in face.items() if name.startswith("p_")]
    assert len(probabilities) == 8
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert max(probabilities) == float(face["confidence"])


def test_parquet_has_the_same_rows(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.parquet"
    assert main(["predict", str(photos / "photo2.png"), "-o", str(output)]) == 0
    assert main(["predict", str(photos), "-o", str(output), "--resume"]) == 1
    table = pq.read_table(output).to_pylist()
    names = ["photo2.png", "below/grey.jpg", "photo10.PNG"]
    assert [row["source"] for row in table] == [str(photos / name) for name in names]
    assert [row["expression"] for row in table] == ["happiness", None, "happiness"]
    assert isinstance(table[0]["p_anger"], float)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_resume_reads_what_a_killed_run_left_out(photos: Path, tmp_path: Path, suffix: str) -> None:
    good = sorted(str(photos / n) for n in ("below/grey.jpg", "photo2.png", "photo10.PNG"))
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    command = ["predict", str(photos), "--max-faces", "3"]
    assert main([*command, "-o", str(whole)]) == 1
    content = whole.read_bytes()
    for length in (0, content.index(b"\n") + 7, len(content) - 9):
        cut.write_bytes(content[:length])
        assert main([*command, "-o", str(cut), "--resume"]) == 1
        lines = cut.read_text().splitlines()
        rows = (
            [json.loads(line) for line in lines] if suffix == "jsonl" else [*csv.DictReader(lines)]
        )
        assert sorted(row["source"] for row in rows) == good
    assert list(tmp_path.glob("*.unfinished")) == []


def test_output_that_is_there_is_not_lost(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "answers.jsonl"
    output.write_text("something of mine\n")
    command = ["predict", str(photos / "photo2.png"), "-o", str(output)]
    assert main(command) == 1
    assert main([*command, "--resume"]) == 1
    assert output.read_text() == "something of mine\n"
    first, second = capsys.readouterr().err.splitlines()
    assert "--overwrite" in first
    assert "not lan-fer's" in second
    assert main([*command, "--overwrite"]) == 0
    assert len(sources(output.read_text())) == 1


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["-o", "answers.txt"], "suffix"),
        (["--format", "parquet"], "standard output"),
        (["--resume"], "standard output"),
        (["--class", "anger"], "explain=evidence"),
        (["--explain", "evidence", "--class", "joy"], "neutral"),
        (["--max-faces", "0"], "LAN_FER_MAX_FACES"),
        (["--timeline", "expressions.png"], "--timeline is for a video"),
        (["--every", "2"], "--every is for a video"),
        (["--smooth", "0"], "--smooth is for a video"),
    ],
)
def test_wrong_use_is_one_line(
    photos: Path, flags: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(photos / "photo2.png"), *flags]) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("lan-fer: ")
    assert why in line
    assert out == ""


def test_draw_writes_pictures_under_the_photos_own_paths(
    photos: Path, tmp_path: Path, portrait: UInt8, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "photos", "-o", "a.jsonl", "--draw", "drawn"]) == 1
    drawn = sorted(str(p.relative_to("drawn")) for p in Path("drawn").rglob("*.jpg"))
    assert drawn == ["photos/below/grey.jpg", "photos/photo10.PNG.jpg", "photos/photo2.png.jpg"]
    picture = np.asarray(Image.open("drawn/photos/photo2.png.jpg")).astype(int)
    assert np.abs(picture - portrait)[50:190, 170:280].mean() > 10


def test_terminal_gets_a_bar_and_a_pipe_none(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for no_color in ("1", ""):
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setattr("sys.stderr", terminal := Terminal())
        main(["predict", str(photos)])
        assert "photos/s" in terminal.getvalue()
        assert ("\x1b[31m1 of 4" in terminal.getvalue()) == (not no_color)


def test_reader_that_has_enough_ends_it_quietly(photos: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "predict", str(photos / "photo2.png")]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, timeout=PATIENCE_SECONDS, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_interrupt_keeps_what_is_done(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    listed = photos / "photo2.png"
    for number in range(200):
        (photos / f"copy{number}.png").hardlink_to(listed)
    command = [sys.executable, "-m", "service.cli", "predict", str(photos), "-o", str(output)]
    # In a shell's background the tests ignore interrupts, and so would what they start.
    heeded = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeded,
    ) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (output.exists() and output.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert err == "lan-fer: stopped\n"
    assert 0 < len(sources(output.read_text())) < 200
