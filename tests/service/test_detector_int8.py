"""The face detector in 8 bits: what it finds, when it runs, and what keeps it from being made."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.detector_int8 import main, quantise_detector
from service.errors import ModelFileError
from service.faces.detector import FaceDetector
from service.faces.face import overlap
from service.precision import load_detector
from service.runtime import Precision, SessionSettings
from service.settings import Settings

UInt8 = NDArray[np.uint8]
CPU = SessionSettings("cpu")
FLOAT32 = Settings().detector_path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the detector with its 8-bit file beside it."""
    path = tmp_path_factory.mktemp("detector") / "x.onnx"
    shutil.copy(FLOAT32, path)
    quantise_detector(path, path.with_suffix(".int8.onnx"))
    return path


@pytest.mark.parametrize("mirrored", [False, True])
def test_it_finds_what_the_float32_network_finds(
    path: Path, portrait: UInt8, mirrored: bool
) -> None:
    image = np.ascontiguousarray(portrait[:, ::-1]) if mirrored else portrait
    exact, found = (
        FaceDetector.load(file, CPU).detect(image)
        for file in (path, path.with_suffix(".int8.onnx"))
    )
    assert len(found) == len(exact) == 1
    assert found[0].score == pytest.approx(exact[0].score, abs=0.05)
    assert overlap(found[0], exact[0]) > 0.9
    side = exact[0].box[2] - exact[0].box[0]
    assert np.abs(found[0].landmarks - exact[0].landmarks).max() < 0.05 * side


def runs_int8(path: Path, precision: Precision) -> bool:
    detector = load_detector(path, precision, CPU)
    return detector.sha256 != load_detector(path, "float32", CPU).sha256


@pytest.mark.parametrize(
    ("precision", "flags", "expected"),
    [
        ("auto", " avx512_vnni", True),
        ("auto", "", False),
        ("float32", " avx512_vnni", False),
        ("int8", "", True),
    ],
)
def test_it_runs_where_it_gains_time_or_was_asked_for(
    path: Path,
    precision: Precision,
    flags: str,
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu{flags}\n")
    monkeypatch.setattr("service.precision.CPUINFO", tmp_path / "cpuinfo")
    assert runs_int8(path, precision) is expected


def test_a_detector_without_one_runs_as_it_is(tmp_path: Path) -> None:
    shutil.copy(FLOAT32, tmp_path / "x.onnx")
    assert not runs_int8(tmp_path / "x.onnx", "int8")


def test_one_of_another_detector_is_not_run(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(path.parent, tmp_path, dirs_exist_ok=True)
    other = tmp_path / "x.onnx"
    other.write_bytes(other.read_bytes() + b"\x3a\x00")  # an empty graph field more
    with caplog.at_level(logging.WARNING):
        assert not runs_int8(other, "int8")
    assert "x.int8.onnx: was made from another file than x.onnx" in caplog.text


# --- what keeps it from being made ---------------------------------------------------------------


def test_without_onnx_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    output = tmp_path / "x.int8.onnx"
    assert main(["--output", str(output)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "`pip install onnx`" in line
    assert not output.exists()


@pytest.mark.parametrize("wrong", [b"no network", None])
def test_another_network_is_refused(wrong: bytes | None, tmp_path: Path) -> None:
    network = Settings().model_path
    if wrong is not None:
        network = tmp_path / "wrong.onnx"
        network.write_bytes(wrong)
    with pytest.raises(ModelFileError, match=network.name) as caught:
        quantise_detector(network, tmp_path / "x.int8.onnx")
    assert "\n" not in caught.value.detail
    assert not (tmp_path / "x.int8.onnx").exists()
