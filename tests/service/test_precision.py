"""Which file runs: float32, or the int8 one beside it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from service import Recognizer
from service.cli import main
from service.errors import ModelFileError
from service.expression import ExpressionModel
from service.pipeline import load_networks
from service.precision import chosen_file, has_vnni, load_detector, load_expression
from service.runtime import Precision, SessionSettings
from service.settings import Settings, load_settings
from tests.service.serving import running
from training.quantisation import quantise

CPU = SessionSettings("cpu")
FLAGS = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu sse2 avx2{}\nbogomips\t: 1\n"


@pytest.mark.parametrize(
    ("cpuinfo", "found"),
    [
        (FLAGS.format(""), False),
        (FLAGS.format(" avx512f avx512_vnni"), True),
        (FLAGS.format(" avx_vnni sha_ni"), True),
        (FLAGS.format(" avx512_vnni_of_another_kind"), False),
        (FLAGS.format("") + FLAGS.format(" avx_vnni"), True),
        ("vmx flags\t: avx_vnni\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n", False),
        ("model name\t: flags avx_vnni\n", False),
        ("", False),
    ],
)
def test_vnni_is_read_from_the_flags(cpuinfo: str, found: bool) -> None:
    assert has_vnni(cpuinfo) is found


@pytest.mark.parametrize(
    ("asked", "precision", "there", "gains", "taken"),
    [
        ("x.onnx", "auto", True, True, "x.int8.onnx"),
        ("x.onnx", "auto", True, False, "x.onnx"),
        ("x.onnx", "auto", False, True, "x.onnx"),
        ("x.onnx", "float32", True, True, "x.onnx"),
        ("x.onnx", "int8", True, True, "x.int8.onnx"),
        ("x.onnx", "int8", True, False, "x.int8.onnx"),
        ("x.1.onnx", "int8", True, False, "x.1.int8.onnx"),
        ("x.int8.onnx", "auto", True, False, "x.int8.onnx"),
        ("x.int8.onnx", "float32", True, False, "x.int8.onnx"),
        ("x.int8.onnx", "int8", True, False, "x.int8.onnx"),
    ],
)
def test_the_file_that_runs(
    tmp_path: Path, asked: str, precision: Precision, there: bool, gains: bool, taken: str
) -> None:
    if there:
        (tmp_path / asked).with_suffix(".int8.onnx").touch()
        (tmp_path / taken).touch()
    assert chosen_file(tmp_path / asked, precision, gains=gains) == tmp_path / taken


def test_a_missing_int8_file_is_one_line_with_the_command(tmp_path: Path) -> None:
    shutil.copy(Settings().model_path, tmp_path / "x.onnx")
    settings = load_settings(model_path=tmp_path / "x.onnx", precision="int8")
    with pytest.raises(ModelFileError) as caught:
        load_networks(settings)
    line = caught.value.detail
    assert line.startswith(f"{tmp_path}/x.int8.onnx: no such file")
    command = f"`python -m training quantise --data DATA --model {tmp_path}/x.onnx"
    assert f"{command} --output {tmp_path}/x.int8.onnx`" in line
    assert "\n" not in line


# --- with a real int8 file -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory, portrait: NDArray[np.uint8]) -> Path:
    """The shipped network, and beside it an int8 one made of a few crops of one face."""
    path = tmp_path_factory.mktemp("models") / "x.onnx"
    shutil.copy(Settings().model_path, path)
    networks = load_networks(load_settings(precision="float32"))
    face = networks.detector.detect(portrait)[0]
    crop = networks.classifier.crop(portrait, face)
    dim = (crop * 0.6).astype(np.uint8)
    crops = [crop, np.ascontiguousarray(crop[:, ::-1]), dim, np.ascontiguousarray(dim[:, ::-1])]
    quantise(path, crops, path.with_suffix(".int8.onnx"))
    return path


@pytest.fixture
def cpu_with_vnni(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(FLAGS.format(" avx512_vnni"))
    monkeypatch.setattr("service.precision.CPUINFO", tmp_path / "cpuinfo")


@pytest.fixture
def no_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.precision.CPUINFO", tmp_path / "none")


def name_of(model_path: Path, precision: Precision) -> str:
    return load_expression(model_path, precision, CPU).contract.name


def test_auto_takes_int8_on_a_cpu_with_vnni(model_path: Path, cpu_with_vnni: None) -> None:
    assert name_of(model_path, "auto").endswith("-int8")
    assert not name_of(model_path, "float32").endswith("-int8")


def test_auto_takes_float32_elsewhere(model_path: Path, no_cpuinfo: None) -> None:
    assert not name_of(model_path, "auto").endswith("-int8")
    assert name_of(model_path, "int8").endswith("-int8")
    assert name_of(model_path.with_suffix(".int8.onnx"), "auto").endswith("-int8")


def test_auto_takes_float32_on_a_gpu(
    model_path: Path, cpu_with_vnni: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.precision.runs_on_cpu", lambda _: False)
    assert not name_of(model_path, "auto").endswith("-int8")


def test_an_int8_file_of_another_model_is_not_run(
    model_path: Path, tmp_path: Path, cpu_with_vnni: None, caplog: pytest.LogCaptureFixture
) -> None:
    """As after an export over the float32 file."""
    shutil.copytree(model_path.parent, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "x.onnx"
    model = onnx.load(path)
    model.producer_version = "another"
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match=r"made from another file than x\.onnx; make it with"):
        load_expression(path, "int8", CPU)
    with caplog.at_level(logging.WARNING):
        assert not name_of(path, "auto").endswith("-int8")
    (record,) = caplog.records
    assert "x.int8.onnx: was made from another file than x.onnx" in record.getMessage()


def test_what_is_wrong_with_an_int8_file_names_the_file_it_stands_for(
    model_path: Path, tmp_path: Path, cpu_with_vnni: None
) -> None:
    path = tmp_path / "x.onnx"
    shutil.copy(model_path, path)
    path.with_suffix(".int8.onnx").write_bytes(b"no model")
    with pytest.raises(ModelFileError, match=r"x\.int8\.onnx.*\(it runs in place of x\.onnx\)$"):
        load_expression(path, "auto", CPU)
    with pytest.raises(ModelFileError, match=r"\(it runs in place of x\.onnx\)$"):
        load_detector(path, "auto", CPU)
    path.write_bytes(b"no model")
    with pytest.raises(ModelFileError) as caught:
        load_expression(path, "float32", CPU)
    assert "in place of" not in caught.value.detail


def test_the_service_starts_and_answers_with_int8(
    model_path: Path, portrait_jpeg: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load_settings(model_path=model_path, precision="int8")
    networks = load_networks(settings)
    with (
        caplog.at_level(logging.INFO),
        running(settings, networks) as server,
        server.client() as client,
    ):
        model = client.get("/model").json()["classifier"]
        reply = client.post("/predict", files={"file": portrait_jpeg}).json()
    assert model["name"] == reply["model"]["name"] == "lan-mobilefacenet-ferplus-int8"
    assert model["version"] == f"sha256:{networks.classifier.sha256}"
    (loaded,) = (r for r in caplog.records if r.getMessage() == "networks loaded")
    assert vars(loaded)["file"] == str(model_path.with_suffix(".int8.onnx"))
    float32 = ExpressionModel.load(model_path, CPU)
    with Recognizer.load(model_path=model_path, precision="float32") as recognizer:
        expected = recognizer.predict(portrait_jpeg).faces[0].expression
        assert recognizer.networks.classifier.sha256 == float32.sha256
    answered = reply["faces"][0]["expression"]
    assert answered["label"] == expected.label == "happiness"
    assert answered["confidence"] == pytest.approx(expected.confidence, abs=0.02)


def test_in_process_and_on_the_command_line(
    model_path: Path, portrait_jpeg: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with Recognizer.load(model_path=model_path, precision="int8") as recognizer:
        assert recognizer.predict(portrait_jpeg).model.name.endswith("-int8")
    options = ["--model-path", str(model_path), "--precision"]
    assert main(["model", "info", *options, "int8"]) == 0
    printed = capsys.readouterr().out
    assert "lan-mobilefacenet-ferplus-int8\n" in printed
    assert str(model_path.with_suffix(".int8.onnx")) in printed
    assert main(["model", "info", *options, "int4"]) == 1
    assert "precision (LAN_FER_PRECISION)" in capsys.readouterr().err
