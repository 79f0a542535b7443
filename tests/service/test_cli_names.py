"""Names that are no UTF-8, that command a terminal, or that no file can have."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from service.cli import main
from service.commands import flags
from service.commands.flags import names_on_stdin
from service.errors import ImageFileError
from service.settings import Settings
from service.video import VideoWriter

PATIENCE_SECONDS = 60
NO_UTF8 = os.fsdecode(b"photo\xff.jpg")
ESCAPES = "\x1b]0;pwned\x07\x9b31m\u202egpj\nlan-fer: all is well.jpg"
ESCAPED = "\\x1b]0;pwned\\x07\\x9b31m\\u202egpj\\nlan-fer: all is well.jpg"


@pytest.fixture
def folder(tmp_path: Path, portrait_jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one, with three photos."""
    try:
        for name in ("a.jpg", NO_UTF8, ESCAPES):
            (tmp_path / name).write_bytes(portrait_jpeg)
    except OSError:
        pytest.skip("this system takes no such names")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sources(output: Path) -> list[str]:
    """As readers have them that know nothing of surrogates."""
    if output.suffix == ".parquet":
        names: list[str] = pq.read_table(output)["source"].to_pylist()
        return names
    with output.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file) if output.suffix == ".csv" else map(json.loads, file)
        return [row["source"] for row in rows]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_every_name_has_its_row_that_resume_finds(
    folder: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what `--resume` does not find a second row would be there."""
    output = f"answers.{suffix}"
    command = ["predict", ESCAPES, NO_UTF8, "a.jpg", "-o", output]
    assert main([*command, "--draw", "drawn"]) == 0
    assert main([*command, "--resume"]) == 0
    assert capsys.readouterr().err == ""
    assert sources(Path(output)) == [ESCAPES, "photo\\xff.jpg", "a.jpg"]
    assert {path.name for path in (folder / "drawn").iterdir()} == {"a.jpg", NO_UTF8, ESCAPES}


def test_names_on_standard_input_may_be_anything(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "predict", "-"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        input=b"no\0name.jpg\nphoto\xff.jpg\nnone\xfe\x1b.jpg\na.jpg\n",
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    found = [json.loads(line)["source"] for line in done.stdout.splitlines()]
    assert found == ["photo\\xff.jpg", "a.jpg"]
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "2 of 4 photos could not be read:",
        "  no\\x00name.jpg: No name of a file holds NUL; names are one a line.",
        "  none\\xfe\\x1b.jpg: The file cannot be read (No such file or directory).",
    ]


def test_standard_input_without_end_is_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "MAX_NAME", 100)
    monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 98 + "\n" + "x" * 1000))
    names = names_on_stdin()
    assert next(names) == "x" * 98 + "\n"
    with pytest.raises(ImageFileError, match="one a line"):
        next(names)


def test_standard_input_that_is_closed_has_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert list(names_on_stdin()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (f"*{ESCAPES}*none", f"lan-fer: *{ESCAPED}*none: no file matches this pattern."),
        (f"none/{ESCAPES}", f"  none/{ESCAPED}: The file cannot be read (No such file"),
        ("\udcff\udc9b", "  \\xff\\x9b: The file cannot be read (No such file"),
    ],
)
def test_a_terminal_is_told_names_in_escapes(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", name]) == 1
    last = capsys.readouterr().err.removesuffix("\n").split("\n")[-1]
    assert last.isprintable()
    assert last.startswith(said)


@pytest.mark.parametrize("command", [["predict", "a.jpg"], ["model", "info"]])
def test_arguments_that_are_not_known_are_told_in_escapes(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, f"--{ESCAPES}".replace(" ", "_")])  # with blanks it is a name
    assert ended.value.code == 2
    last = capsys.readouterr().err.removesuffix("\n").split("\n")[-1]
    assert last.endswith(f"error: unrecognized arguments: --{ESCAPED.replace(' ', '_')}")


def test_a_models_path_is_told_in_escapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model\x1b\u202e.onnx"
    path.symlink_to(Settings().model_path.absolute())
    assert main(["model", "info", "--model-path", str(path)]) == 0
    out = capsys.readouterr().out
    assert "model\\x1b\\u202e.onnx" in out
    assert all(line.isprintable() for line in out.splitlines())


def test_opencv_would_die_of_a_name_that_is_no_utf8(
    folder: Path, portrait: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    writer = VideoWriter(folder / "clip.mp4", 10.0)
    writer.write(portrait)
    writer.close()
    name = os.fsdecode(b"clip\xff.mp4")
    (folder / name).hardlink_to(folder / "clip.mp4")
    assert main(["predict", name]) == 1
    assert main(["predict", "clip.mp4", "--draw", os.fsdecode(b"\xff")]) == 1
    assert main(["predict", "a.jpg", "-o", os.fsdecode(b"\xff.parquet")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "lan-fer: clip\\xff.mp4: A video's name must be UTF-8; give the file another.",
        "lan-fer: \\xff/clip.mp4: the path of a video must be UTF-8.",
        "lan-fer: \\xff.parquet: the path of a Parquet folder must be UTF-8.",
    ]
