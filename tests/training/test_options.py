"""Mistakes in a command's options end it in one line, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.cli import build_parser, main
from training.config import TrainingConfig
from training.options import read_config

TRAIN = ("train", "--data", "photos", "--run", "runs/x")


def test_without_options_the_configuration_is_the_default_one() -> None:
    assert read_config(build_parser().parse_args(TRAIN)) == TrainingConfig()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", "0"), "argument --epochs: 0 is not 1 or more"),
        (("--epochs", "-1"), "argument --epochs: -1 is not 1 or more"),
        (("--epochs", "two"), "argument --epochs: invalid int value: 'two'"),
        (("--batch-size", "0"), "argument --batch-size: 0 is not 1 or more"),
        (("--learning-rate", "-1"), "argument --learning-rate: -1 is not 0 or more"),
        (("--learning-rate", "nan"), "argument --learning-rate: nan is not 0 or more"),
        (("--workers", "-3"), "argument --workers: -3 is not 0 or more"),
        (("--seed", "-1"), "argument --seed: -1 is not 0 or more"),
        (("--augment-blur", "-0.1"), "argument --augment-blur: -0.1 is not 0 or more"),
        (("--backbone", "vgg"), "argument --backbone: invalid choice: 'vgg'"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*TRAIN, *options])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert line.endswith("(python -m training train --help)")


def test_what_is_told_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*TRAIN, "--\x1b\u202e\n"])
    line = capsys.readouterr().err
    assert line.startswith("error: unrecognized arguments: --\\x1b\\u202e\\n (")
    assert main(["evaluate", "--model", "x\x1b.onnx", "--data", "photos\x1b"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "x\\x1b.onnx" in line or "photos\\x1b" in line


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("train", ("--run", "{photo}/x"), "{photo}/x: {photo} is a file; expected a folder"),
        ("train", ("--run", "{photo}"), "{photo}: {photo} is a file; expected a folder"),
        ("train", ("--run", "{tmp}/x", "--cache", "{photo}"), "is a file; expected a folder"),
        ("export", ("--run", "{tmp}/x", "--output", "{photo}/x.onnx"), "{photo} is a file"),
        ("export", ("--run", "{tmp}/x", "--output", "{tmp}/card.md"), "a name that ends in .onnx"),
        ("export", ("--run", "{tmp}/x", "--output", "{tmp}/a.txt"), "a name that ends in .onnx"),
        ("export", ("--run", "{tmp}/x", "--output", "{tmp}/model"), "a name that ends in .onnx"),
        ("export", ("--run", "{tmp}/x", "--output", "{tmp}/a.onnx"), "replace it with --overwrite"),
        # Its card's picture would go over a photo.
        ("export", ("--run", "{tmp}/x", "--output", "{tmp}/b.onnx"), "b.png exists; replace it"),
        ("quantise", ("--model", "{tmp}/x", "--output", "{tmp}/a.onnx"), "a.onnx exists; replace"),
        ("quantise", ("--model", "{tmp}/x", "--output", "{tmp}/a.int8"), "name that ends in .onnx"),
    ],
)
def test_what_cannot_be_written_is_refused_first(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    options: tuple[str, ...],
    message: str,
) -> None:
    """Neither the run nor the data are there, which would be the next thing to be said."""
    for name in ("photo.jpg", "a.onnx", "b.png"):
        (tmp_path / name).touch()
    known = {"photo": tmp_path / "photo.jpg", "tmp": tmp_path}
    filled = [option.format(**known) for option in options]
    assert main([command, "--data", str(tmp_path / "nowhere"), *filled]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message.format(**known) in line


def test_a_detector_replaces_nothing_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "retinaface.onnx"
    output.touch()
    assert main(["detector", "--checkpoint", "nowhere", "--output", str(output)]) == 1
    assert "exists; replace it with --overwrite" in capsys.readouterr().err
