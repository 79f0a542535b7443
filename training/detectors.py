"""RetinaFace ResNet-50 as the package `retinaface-pytorch` publishes it -> the service's detector.

    pip install --no-deps retinaface-pytorch==0.0.8
    python -m training detector --download --output models/retinaface_resnet50.onnx

The package pins a torch of 2021, so it is installed without its dependencies; its network runs on
today's. The ONNX file takes and gives what the service's default detector does (BGR minus means
in; box offsets, probabilities and landmark offsets out): the setting `detector_path` is enough.
"""

from __future__ import annotations

import hashlib
import importlib
import tempfile
import urllib.error
import warnings
import zipfile
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from service.faces.detector import BGR_MEAN
from service.runtime import SessionSettings, load_model
from training.backbones.checkpoints import load_exactly, read_state

PACKAGE = "retinaface-pytorch==0.0.8"
URL = (
    "https://github.com/ternaus/retinaface/releases/download/0.01/"
    "retinaface_resnet50_2020-07-20-f168fae3c.zip"
)
# The publisher's file name carries the first digits of the file's SHA-256, as torch's own do.
SHA256_START = "f168fae3c"
# What the package normalises RGB values in 0..255 with (ImageNet's).
RGB_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
RGB_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
OUTPUTS = ("loc", "conf", "landmarks")
# (height, width) of the canvases that an exported file is checked on.
CHECKED = ((128, 160), (160, 96))
TOLERANCE = 1e-3


class DetectorError(Exception):
    """The detector cannot be built, fetched or exported; the message says why."""


class DetectorForExport(nn.Module):
    """The package's network behind the service's contract."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # (bgr + BGR_MEAN) reversed, minus RGB_MEAN, divided by RGB_STD.
        mean, std = torch.tensor(RGB_MEAN), torch.tensor(RGB_STD)
        shift = (torch.tensor(BGR_MEAN).flip(0) - mean) / std
        self.register_buffer("scale", (1 / std).reshape(3, 1, 1))
        self.register_buffer("shift", shift.reshape(3, 1, 1))

    def forward(self, canvas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N,3,H,W] BGR minus BGR_MEAN -> offsets [N,A,4], probabilities [N,A,2], [N,A,10]."""
        rgb = canvas[:, [2, 1, 0]] * self.scale + self.shift
        offsets, logits, landmarks = self.network(rgb)
        return offsets, logits.softmax(-1), landmarks


def build_network() -> nn.Module:
    """The package's network with random weights. Raises DetectorError where it is not installed."""
    try:
        module = importlib.import_module("retinaface.network")
    except ImportError as error:
        raise DetectorError(
            f"no module retinaface.network; run `pip install --no-deps {PACKAGE}` (another package "
            "that calls itself retinaface must not be installed beside it)"
        ) from error
    with warnings.catch_warnings():
        # torchvision has since renamed the argument that the package passes.
        warnings.simplefilter("ignore", UserWarning)
        network: nn.Module = module.RetinaFace(
            name="Resnet50",
            pretrained=False,
            in_channels=256,
            return_layers={"layer2": 1, "layer3": 2, "layer4": 3},
            out_channels=256,
        )
    return network.eval()


def load_checkpoint(network: nn.Module, path: Path) -> None:
    """Load the published file (a ZIP with one checkpoint in it) or a plain checkpoint.

    Raises CheckpointError naming what does not fit.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            files = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(files) == 1:  # torch's own format is a ZIP too, of many files
                with tempfile.TemporaryDirectory() as folder:
                    inner = Path(archive.extract(files[0], folder))
                    load_exactly(network, read_state(inner), path)
                return
    load_exactly(network, read_state(path), path)


def fetch_checkpoint(folder: Path) -> Path:
    """Download the published checkpoint into `folder`, checked against its digest.

    A file that is there is not fetched again, but checked. Raises DetectorError.
    """
    path = folder / URL.rsplit("/", 1)[1]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not path.is_file():
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256_START)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise DetectorError(
            f"{URL} could not be fetched ({error}); fetch it elsewhere and pass --checkpoint"
        ) from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(SHA256_START):
        raise DetectorError(f"{path}: SHA-256 is {digest}, expected {SHA256_START}...; remove it")
    return path


def export_detector(network: nn.Module, path: Path) -> float:
    """Write the ONNX file and compare it with torch, output by output.

    Returns the largest absolute difference; raises DetectorError where it is over TOLERANCE.
    """
    wrapper = DetectorForExport(network).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.onnx")
    axes = {"input": {0: "images", 2: "height", 3: "width"}}
    axes |= {name: {0: "images", 1: "anchors"} for name in OUTPUTS}
    with warnings.catch_warnings():
        # That this exporter is the older of torch's two is known, and said here alone.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            wrapper,
            (torch.zeros(1, 3, *CHECKED[0]),),
            str(temporary),
            input_names=["input"],
            output_names=list(OUTPUTS),
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    onnx.checker.check_model(str(temporary))
    difference = max(_difference(wrapper, temporary, canvas) for canvas in CHECKED)
    if not difference <= TOLERANCE:
        temporary.unlink()
        raise DetectorError(f"{path}: ONNX differs from torch by {difference:.2g}")
    temporary.replace(path)
    return difference


def _difference(wrapper: nn.Module, path: Path, canvas: tuple[int, int]) -> float:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *canvas, generator=generator) * 255
    images -= torch.tensor(BGR_MEAN).reshape(3, 1, 1)
    with torch.no_grad():
        expected = wrapper(images)
    session = load_model(path, SessionSettings("cpu")).session
    actual = session.run(list(OUTPUTS), {"input": images.numpy()})
    gaps = [(torch.from_numpy(a) - e).abs().max() for a, e in zip(actual, expected, strict=True)]
    return torch.stack(gaps).max().item()
