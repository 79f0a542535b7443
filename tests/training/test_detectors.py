"""RetinaFace ResNet-50 for the service: the package's own network, output by output."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.boxes import main
from service.faces.detector import NOTHING, FaceDetector, anchors
from service.runtime import SessionSettings
from tests.training.made_up import astronaut, write_png
from training import detectors
from training.backbones import CheckpointError
from training.detectors import (
    DetectorError,
    build_network,
    export_detector,
    fetch_checkpoint,
    load_checkpoint,
)

retinaface = pytest.importorskip(
    "retinaface.network", reason=f"needs pip install --no-deps {detectors.PACKAGE}"
)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = build_network()
    for head in network.get_submodule("ClassHead").children():
        # Else random weights see thousands of faces, each of which the service looks at closely.
        head.get_parameter("conv1x1.bias").data[::2] += 6
    return network


@pytest.fixture(scope="module")
def exported(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "r50.onnx"
    assert export_detector(network, path) <= detectors.TOLERANCE
    return path


def test_the_service_runs_the_packages_network(network: nn.Module, exported: Path) -> None:
    assert [file.name for file in exported.parent.iterdir()] == ["r50.onnx"]
    detector = FaceDetector.load(exported, SessionSettings("cpu"))
    (look,) = detector.rounds(512, 512)[0].wanted(NOTHING)
    placement = detector.place(astronaut(), look)
    (raw,) = detector.infer([placement])
    # What the package does with the same pixels: ImageNet's mean and deviation on RGB in 0..1.
    rgb = placement.pixels.astype(np.float32) / 255
    rgb = (rgb - np.array((0.485, 0.456, 0.406))) / np.array((0.229, 0.224, 0.225))
    with torch.no_grad():
        own = network(torch.from_numpy(rgb.astype(np.float32)).permute(2, 0, 1)[None])
    offsets, probabilities, landmarks = own[0], own[1].softmax(-1), own[2]
    np.testing.assert_allclose(raw.offsets, offsets[0], atol=1e-3)
    np.testing.assert_allclose(raw.scores, probabilities[0, :, 1], atol=1e-3)
    np.testing.assert_allclose(raw.landmark_offsets, landmarks[0], atol=1e-3)
    assert len(raw.scores) == len(anchors(look.canvas))
    assert np.ptp(raw.scores) > 1e-3, "the outputs say something"


def test_both_detectors_report_their_boxes(
    exported: Path, detector_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "face.png", astronaut()[10:226, 117:333])
    (tmp_path / "faces.csv").write_text("path,x1,y1,x2,y2\nface.png,59,45,158,172\n")
    options = ["--detector", str(exported), str(detector_path)]
    assert main([*options, "--faces", str(tmp_path / "faces.csv"), "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    random, trained = (report["heights"]["all"] for report in reports.values())
    assert (trained["faces"], trained["found"], trained["false"]) == (1, 1, 0)
    assert random["faces"] == 1
    assert random["found"] <= 1


def test_anchors_are_the_packages() -> None:
    priors = pytest.importorskip("retinaface.prior_box").priorbox(
        [[16, 32], [64, 128], [256, 512]], [8, 16, 32], clip=False, image_size=(480, 640)
    )
    ours = anchors((480, 640))
    in_pixels = priors.numpy() * np.array((640, 480, 640, 480))
    np.testing.assert_allclose(ours[:, [0, 1, 2, 2]], in_pixels, atol=1e-2)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_published_layout_is_loaded(network: nn.Module, tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "retinaface.pth"
    torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, path)
    if zipped:
        with zipfile.ZipFile(tmp_path / "retinaface.zip", "w") as archive:
            archive.write(path, path.name)
        path = tmp_path / "retinaface.zip"
    torch.manual_seed(1)
    other = build_network()
    load_checkpoint(other, path)
    own = network.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in other.state_dict().items())


def test_another_network_is_refused(network: nn.Module, tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: does not fit RetinaFace"):
        load_checkpoint(network, tmp_path / "other.pth")


def test_a_file_with_another_digest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / detectors.URL.rsplit("/", 1)[1]
    path.write_bytes(b"something else")
    with pytest.raises(DetectorError, match=r"expected f168fae3c\.\.\.; remove it"):
        fetch_checkpoint(tmp_path)


def test_a_failed_download_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detectors, "URL", (tmp_path / "absent.zip").as_uri())
    with pytest.raises(DetectorError, match="pass --checkpoint"):
        fetch_checkpoint(tmp_path / "cache")


def test_without_the_package_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "retinaface.network", None)
    with pytest.raises(DetectorError, match=r"pip install --no-deps retinaface-pytorch==0\.0\.8"):
        build_network()
