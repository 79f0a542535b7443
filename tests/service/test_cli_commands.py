from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli import COMMANDS, build_parser, main
from service.pipeline import Networks

PATIENCE_SECONDS = 120


def lan_fer(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["model", "info"]])
def test_help_has_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([*command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    if command != ["model"]:
        assert "example" in text
        assert "\n  lan-fer " in text


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("--verison", "unrecognized arguments: --verison; did you mean --version?"),
        ("bulk photos --outptu=x", "unrecognized arguments: --outptu=x; did you mean --output?"),
        ("predict --overwrite", "the following arguments are required: PATH"),
        ("predict --over", "the following arguments are required: PATH"),
        ("--port=9000", "the following arguments are required: COMMAND"),
    ],
)
def test_what_is_missing_because_of_a_mistyped_flag(
    wrong: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {said}")


def test_wrong_use_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ([], ["predicted"], ["predict"], ["predict", "a.jpg", "--every", "0"]):
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args(wrong)
        assert ended.value.code == 2
    assert "must be 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("serve --prot 9000", "--prot 9000; did you mean --port?"),
        ("predict a.jpg --drow=x", "--drow=x; did you mean --draw?"),
        ("model info --jsno", "--jsno; did you mean --json?"),
        ("bench a.jpg --zzz", "--zzz"),
        ("serve 9000", "9000"),
    ],
)
def test_flag_that_there_is_not_is_answered_by_its_command(
    wrong: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(wrong.split())
    assert ended.value.code == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    command = "lan-fer model info" if wrong.startswith("model") else f"lan-fer {wrong.split()[0]}"
    assert first.startswith(f"usage: {command} ")
    assert last == f"{command}: error: unrecognized arguments: {said}"


@pytest.mark.parametrize(
    ("command", "wrong", "right"),
    [
        ("bench", ("0", "-1", "nan", "inf", "soon"), "0.1"),
        ("predict", ("-1", "-0.1", "nan", "inf", "soon"), "0"),
    ],
)
def test_seconds_have_their_bounds(
    command: str, wrong: tuple[str, ...], right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = {"bench": "--seconds", "predict": "--smooth"}[command]
    for text in wrong:
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args([command, "a.mp4", flag, text])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert f"argument {flag}: '{text}' is no number of seconds" in error
    given = build_parser().parse_args([command, "a.mp4", flag, right])
    assert getattr(given, flag.removeprefix("--")) == float(right)


def test_help_loads_neither_web_framework_nor_torch() -> None:
    script = "import sys, service.cli; service.cli.build_parser(); "
    script += "print(sorted({'fastapi', 'torch', 'ray', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_model_info(networks: Networks, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "info"]) == 0
    text = capsys.readouterr().out
    assert networks.classifier.contract.name in text
    assert networks.detector.sha256 in text
    assert f"{networks.classifier.contract.validation_accuracy:.6g}" in text
    assert main(["model", "info", "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["classifier"]["version"] == f"sha256:{networks.classifier.sha256}"
    assert main(["model", "info", "--model-path", "no-such.onnx"]) == 1
    assert "no-such.onnx" in capsys.readouterr().err


def test_bench(tmp_path: Path, portrait_jpeg: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(portrait_jpeg)
    command = ["bench", str(photo), "--seconds", "0.1"]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["photos"], report["faces"]) == (1, 1)
    assert report["photos_per_second"] > 0
    stages = report["milliseconds"]
    assert set(stages) == {"decode", "detect", "classify", "queue", "total"}
    assert 0 < stages["detect"]["median"] <= stages["total"]["p95"]
    assert main(command) == 0
    assert "photos a second" in capsys.readouterr().out


def test_bench_names_the_file_that_it_cannot_read(
    tmp_path: Path, portrait_jpeg: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, text, missing = (tmp_path / name for name in ("photo.jpg", "text.txt", "none.jpg"))
    photo.write_bytes(portrait_jpeg)
    text.write_text("no photo")
    for wrong, why in ((text, "The bytes are no JPEG"), (missing, "The file cannot be read")):
        assert main(["bench", str(photo), str(wrong), "--seconds", "0.1"]) == 1
        out, err = capsys.readouterr()
        assert err.splitlines()[0] == "1 of 2 photos could not be read:"
        assert err.splitlines()[1].startswith(f"  {wrong}: {why}")
        assert out.startswith("1 photos, 1 faces"), "the others are measured"
        assert main(["bench", str(wrong)]) == 1
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 2)


def test_trainings_commands_are_a_group() -> None:
    listed = lan_fer("--help")
    assert listed.returncode == 0
    assert "training" in listed.stdout
    group = lan_fer("training", "evaluate", "--help")
    assert group.returncode == 0, group.stderr
    assert "--split" in group.stdout


def test_trainings_commands_say_what_they_need(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    assert main(["training", "train"]) == 1
    said = "lan-fer: training needs torch, which serving does without: make setup\n"
    assert capsys.readouterr().err == said
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "training" not in capsys.readouterr().out


def test_bulk_looks_for_its_photos_before_anything_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "answers"
    missing = tmp_path / "nope"
    assert main(["bulk", str(tmp_path), str(missing), "--output", str(output)]) == 1
    assert capsys.readouterr().err == f"lan-fer: {missing}: no such file or folder.\n"
    assert not output.exists()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("lan-fer ", {"serve", "predict", "bulk", "model", "bench"}),
        ("lan-fer predict --explain ", {"attention", "evidence"}),
        ("lan-fer serve --max-batch", {"--max-batch-images"}),
    ],
)
def test_shell_completion(typed: str, offered: set[str], tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    lan_fer(
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_STDOUT_FILENAME=str(answer),
        COMP_LINE=typed,
        COMP_POINT=str(len(typed)),
        _ARGCOMPLETE_SUPPRESS_SPACE="1",
        IFS="\n",
        _ARGCOMPLETE_IFS="\n",
    )
    assert offered <= {line.strip() for line in answer.read_text().split("\n")}
