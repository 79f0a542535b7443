"""Small data sets, networks and contracts that the tests of training share."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import skimage.data
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor, nn

from service.contract import ModelContract
from training.augmentation import Augmentation
from training.backbones import Backbone, load_backbone
from training.config import TrainingConfig
from training.crops import CropDataset, normalise
from training.datasets.ferplus import FOLDERS, LABELS
from training.datasets.records import Split
from training.export import ModelFacts, make_contract
from training.lan import Lan
from training.preparation import FOUND, Prepared

ROOT = Path(__file__).parents[2]
DETECTOR = ROOT / "models" / "retinaface_mnet025.onnx"

UInt8 = NDArray[np.uint8]


# --- pictures ----------------------------------------------------------------------------------


def write_png(path: Path, pixels: ArrayLike) -> Path:
    """`pixels` [H,W] or [H,W,3] uint8 as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def astronaut() -> UInt8:
    """A photo [512,512,3] uint8 RGB of one face, around (225, 118), 120 pixels high."""
    return np.asarray(skimage.data.astronaut(), np.uint8)


def grey_face(half: int = 72, side: int = 48) -> UInt8:
    """The astronaut's face as FER2013 shows faces: [side,side] uint8 grey."""
    tight = astronaut()[118 - half : 118 + half, 225 - half : 225 + half]
    shrunk = cv2.resize(tight, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(shrunk, cv2.COLOR_RGB2GRAY), np.uint8)


@dataclass(frozen=True)
class FacePictures:
    """Files with and without a face."""

    found: tuple[Path, ...]
    """The astronaut: the whole photo, a crop, a crop that is wider than high, 48 x 48 grey."""
    faceless: Path


def face_pictures(folder: Path) -> FacePictures:
    """Write them."""
    photo = astronaut()
    pictures = {
        "whole.png": photo,
        "crop.png": photo[10:226, 117:333],
        "wide.png": photo[20:220, 60:400],
        "grey.png": grey_face(),
    }
    found = tuple(write_png(folder / name, pixels) for name, pixels in pictures.items())
    return FacePictures(found, write_png(folder / "flat.png", np.full((48, 48), 127)))


# --- data sets ---------------------------------------------------------------------------------


def ferplus_row(name: str, votes: Sequence[int]) -> str:
    """A line of label.csv."""
    return ",".join((name, '"(0, 0, 48, 48)"', *map(str, votes)))


def votes_for(label: int, count: int = 10) -> list[int]:
    """`count` votes for one class, none for the others."""
    votes = [0] * 10
    votes[label] = count
    return votes


def write_ferplus(
    root: Path, split: str, votes: Mapping[str, Sequence[int]], images: Mapping[str, UInt8]
) -> Path:
    """One folder of the official layout; images that are not given are made up, each unlike."""
    folder = root / FOLDERS[split]
    for name in votes:
        seed = zlib.crc32(f"{split}/{name}".encode())
        noise = np.random.default_rng(seed).integers(0, 256, (48, 48), np.uint8)
        write_png(folder / name, images.get(name, noise))
    rows = [ferplus_row(name, row) for name, row in votes.items()]
    (folder / "label.csv").write_text("\n".join(rows) + "\n")
    return folder


def coloured_split(folder: Path, count: int, classes: int = 3, side: int = 28) -> Split:
    """`count` images of noise, in which the class is the channel that is bright."""
    rng = np.random.default_rng(count)
    hard = np.arange(count) % classes
    paths = []
    for index, label in enumerate(hard):
        pixels = rng.integers(0, 120, (side, side, 3))
        pixels[..., label] += 100
        paths.append(write_png(folder / f"{index:03}.png", pixels))
    targets = (0.7 * np.eye(classes) + 0.1)[hard].astype(np.float32)
    labels = tuple(f"class {i}" for i in range(classes))
    return Split(labels, tuple(paths), targets, hard.astype(np.int64))


def fitted(count: int, side: int = 28) -> Prepared:
    """Geometry that fits square images of `side` pixels to the whole crop."""
    scale = 112 / side
    shift = (scale - 1) / 2
    matrix = np.array([[scale, 0, shift], [0, scale, shift]])
    landmarks = np.zeros((count, 5, 2), np.float32)
    return Prepared((FOUND,) * count, landmarks, np.repeat(matrix[None], count, 0))


def made_up_crops(folder: Path, count: int) -> CropDataset:
    """Augmented crops of `coloured_split`, each class with a guidance map of its own."""
    split = coloured_split(folder, count)
    patterns = np.random.default_rng(0).integers(0, 2, (len(split.labels), 7, 7), np.uint8)
    maps = patterns[split.classes]
    return CropDataset(split, fitted(count), 28, guidance=maps, augmentation=Augmentation())


# --- networks ----------------------------------------------------------------------------------


class TinyBackbone(nn.Module):
    """[N,3,28,28] -> [N,8,7,7] in two layers, with everything that must survive a checkpoint."""

    feature_channels = 8
    input_size = 28

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.prelu = nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.prelu(self.bn(self.conv(x)))
        return y


def tiny_lan(classes: int = 3, *, fusion: str = "add", dropout: float = 0.0, seed: int = 0) -> Lan:
    """A LAN on the tiny backbone, with random weights drawn from `seed`."""
    torch.manual_seed(seed)
    backbone = cast(Backbone, TinyBackbone())
    return Lan(backbone, classes, fusion=fusion, dropout=dropout)


def enliven(network: Lan, seed: int = 0) -> Lan:
    """Give random weights what training gives: BatchNorm statistics of its inputs, varied scales
    and slopes, so that differences between images reach the logits. In evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
            module.momentum = 1.0
        elif isinstance(module, nn.PReLU):
            module.weight.data.uniform_(0, 0.5, generator=generator)
    with torch.no_grad():
        network.train()(clouds(8, network.backbone.input_size, seed))
    return network.eval()


def clouds(count: int, size: int, seed: int = 0) -> Tensor:
    """`count` grainy, cloudy random images [N,3,size,size] float32, normalised."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 9, 9, generator=generator)
    grain = torch.rand(count, 3, size, size, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return normalise(((0.6 * smooth + 0.4 * grain) * 255).to(torch.uint8))


def contract_for(network: Lan, config: TrainingConfig) -> ModelContract:
    """The contract of a made-up network, eight labels; as if it had been measured."""
    provenance = {"labels": list(LABELS), "dataset": "made up", "protocol": "majority"}
    contract = make_contract(network, config, provenance, ModelFacts("made-up", "test", "none"))
    return contract.model_copy(update={"validation_accuracy": 0.5, "temperature": 1.25})


def a_lan(config: TrainingConfig, seed: int) -> Lan:
    """A lively network whose PReLUs differ by channel."""
    torch.manual_seed(seed)
    backbone = load_backbone(config.backbone, None)
    network = enliven(Lan(backbone, len(LABELS), fusion=config.fusion)).eval()
    for module in network.modules():
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.3, 0.5)
    return network


def some_images(count: int) -> Tensor:
    """[count,3,112,112], always the same."""
    return torch.randn(count, 3, 112, 112, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(network: Lan, images: Tensor) -> Tensor:
    """What `network` answers to images [N,3,S,S]: [N,K]."""
    answers: Tensor = network(images).logits
    return answers
