from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.cli import main
from service.errors import ImageFileError, OutputError
from service.timeline import draw_timeline
from service.video import VideoWriter, read_frames, video_info

UInt8 = NDArray[np.uint8]
PATIENCE_SECONDS = 60
RATE = 10.0
FRAMES = 8
STEP = 6  # pixels that the face moves to the right from frame to frame


def face_of(portrait: UInt8) -> UInt8:
    return np.asarray(Image.fromarray(portrait[20:220, 120:320]).resize((180, 180)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, portrait: UInt8) -> Path:
    """Eight frames [240,320,3] of a portrait that moves to the right, and is gone in the sixth."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    face = face_of(portrait)
    writer = VideoWriter(path, RATE)
    for index in range(FRAMES):
        page = np.full((240, 320, 3), 90, np.uint8)
        if index != 5:
            page[30:210, 20 + STEP * index : 200 + STEP * index] = face
        writer.write(page)
    writer.close()
    return path


def test_frames_are_rgb_in_order_with_their_times(clip: Path, portrait: UInt8) -> None:
    assert video_info(clip).frames == FRAMES
    assert video_info(clip).frames_per_second == pytest.approx(RATE)
    frames = list(read_frames(clip))
    assert [frame.index for frame in frames] == list(range(FRAMES))
    assert [frame.seconds for frame in frames] == pytest.approx([i / RATE for i in range(FRAMES)])
    assert frames[0].pixels.shape == (240, 320, 3)
    shown, known = frames[0].pixels[30:210, 20:200].astype(int), face_of(portrait)
    assert np.abs(shown - known).mean() < np.abs(shown - known[..., ::-1]).mean()
    assert [frame.index for frame in read_frames(clip, every=3)] == [0, 3, 6]


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    for refuse in (video_info, lambda p: list(read_frames(p))):
        with pytest.raises(ImageFileError, match="No such file"):
            refuse(path)
    path.write_bytes(b"no video" * 100)
    with pytest.raises(ImageFileError, match="no video"):
        video_info(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero and named pipes")
def test_what_is_no_file_is_neither_read_nor_waited_for(tmp_path: Path) -> None:
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("zero.mp4", "pipe.mp4"):
        with pytest.raises(ImageFileError, match="is a device or a named pipe, and no file"):
            video_info(tmp_path / name)


def test_a_playlist_opens_no_other_file(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.mp4"
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    for text in (
        "ffconcat version 1.0\nfile clip.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nclip.mp4\n#EXT-X-ENDLIST\n",
    ):
        path.write_text(text)
        with pytest.raises(ImageFileError, match="no video that FFmpeg can read"):
            video_info(path)


def test_a_name_is_no_address(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("concat:other.mp4|.mp4")
    path.write_bytes(clip.read_bytes())
    assert video_info(path).frames == FRAMES


@pytest.mark.parametrize(
    ("suffix", "code"),
    [("mov", "mp4v"), ("avi", "MJPG"), ("mkv", "MJPG"), ("webm", "VP80"), ("mpg", "mp1v")]
    + [("wmv", "WMV2"), ("ts", "mp4v"), ("m4v", "mp4v")],
)
def test_containers_of_every_kind_are_read(tmp_path: Path, suffix: str, code: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 25.0, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV does not write it")
    for grey in range(FRAMES):
        writer.write(np.full((48, 64, 3), 20 * grey, np.uint8))
    writer.release()
    assert len(list(read_frames(path))) == FRAMES


def test_a_broken_video_is_one_line(clip: Path, tmp_path: Path) -> None:
    """OpenCV and FFmpeg write on stderr themselves: only a process of its own shows that."""
    path = tmp_path / "half.mp4"
    path.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "predict", str(path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    wanted = f"lan-fer: {path}: no video that FFmpeg can read.\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", wanted)


def test_video_to_a_timeline(clip: Path, tmp_path: Path) -> None:
    output, picture = tmp_path / "clip.csv", tmp_path / "curves" / "clip.png"
    command = ["predict", str(clip), "-o", str(output), "--timeline", str(picture)]
    assert main([*command, "--draw", str(tmp_path / "drawn")]) == 0
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert [int(row["frame"]) for row in rows] == [0, 1, 2, 3, 4, 6, 7]
    assert {row["track"] for row in rows} == {"1"}  # across the frame without a face
    assert [float(row["seconds"]) for row in rows] == pytest.approx(
        [int(row["frame"]) / RATE for row in rows]
    )
    moved = float(rows[-1]["x1"]) - float(rows[0]["x1"])
    assert moved == pytest.approx(STEP * (FRAMES - 1), abs=8)
    for row in rows:
        smoothed = [float(value) for name, value in row.items() if name.startswith("s_")]
        assert sum(smoothed) == pytest.approx(1, abs=1e-4)
    assert rows[0]["s_happiness"] == rows[0]["p_happiness"]
    with Image.open(picture) as curves:
        assert curves.width > 500
    (drawn,) = (tmp_path / "drawn").rglob("*.mp4")
    assert video_info(drawn).frames == FRAMES
    first, plain = (next(iter(read_frames(path))).pixels for path in (drawn, clip))
    assert np.abs(first.astype(int) - plain).max() > 100


def test_every_nth_frame_as_json_lines(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(clip), "--every", "7", "--smooth", "0"]) == 0
    first, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["frame"], last["frame"]) == (0, 7)
    assert first["smoothed"].keys() == first["expression"]["probabilities"].keys()
    assert len(first["attention"]["grid"]) == 7


@pytest.mark.parametrize(
    ("more", "why"), [(["--resume"], "--resume"), (["other.jpg"], "read alone")]
)
def test_what_a_video_cannot_have(
    clip: Path, more: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(clip), *more]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line


@pytest.mark.parametrize("name", ["clip.foo", "clip.jpg", "clip"])
def test_timeline_of_another_suffix_is_refused_before_anything_is_read(
    clip: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output, picture = tmp_path / "clip.csv", tmp_path / name
    assert main(["predict", str(clip), "-o", str(output), "--timeline", str(picture)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"lan-fer: {picture}: a timeline's suffix is one of .png, .svg, .pdf."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["clip.PNG", "clip.svg", "clip.pdf"])
def test_timeline_of_every_suffix_that_the_help_names(
    clip: Path, tmp_path: Path, name: str
) -> None:
    output, picture = tmp_path / "clip.csv", tmp_path / name
    command = ["predict", str(clip), "--every", "7", "-o", str(output)]
    assert main([*command, "--timeline", str(picture)]) == 0
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[picture.suffix.lower()]
    assert picture.read_bytes().startswith(start)


def test_a_timelines_title_is_no_formula(tmp_path: Path) -> None:
    draw_timeline([], tmp_path / "curves.svg", title="clip $\\frac$.mp4")
    assert (tmp_path / "curves.svg").stat().st_size > 0


def test_timeline_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="the timeline cannot be written"):
        draw_timeline([], tmp_path / "file" / "clip.png", title="clip")


def test_broken_off_video_gives_what_it_has(clip: Path, tmp_path: Path) -> None:
    # AVI has no table at its end without which nothing can be read.
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (320, 240))
    for frame in read_frames(clip):
        writer.write(frame.pixels[..., ::-1])
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 0 < len(list(read_frames(path))) < FRAMES
