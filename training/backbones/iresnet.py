"""Improved ResNet (Duta et al., 2020) as ArcFace trains it, 112x112: the "IR" face backbones."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from training.backbones.checkpoints import load_exactly, read_state

FEATURE_CHANNELS = 512
INPUT_SIZE = 112
WIDTHS = (64, 128, 256, 512)
# What follows the feature map in a recognition network: not used here.
HEAD_PREFIXES = ("fc.", "features.")


class IrBlock(nn.Module):
    """BatchNorm, convolution, BatchNorm, PReLU, convolution, BatchNorm, plus the input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N,inputs,H,W] -> [N,outputs,H/stride,W/stride]."""
        y = self.bn2(self.conv1(self.bn1(x)))
        y = self.bn3(self.conv2(self.prelu(y)))
        short = x if self.downsample is None else self.downsample(x)
        return y + short  # type: ignore[no-any-return]


class IResNet(nn.Module):
    """Aligned face [N,3,112,112] float32 RGB -> feature map F_o [N,512,7,7]."""

    feature_channels = FEATURE_CHANNELS
    input_size = INPUT_SIZE

    def __init__(self, depths: tuple[int, int, int, int]) -> None:
        """`depths` blocks in each of the four layers; the first of each halves the map."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1, self.prelu = nn.BatchNorm2d(WIDTHS[0]), nn.PReLU(WIDTHS[0])
        inputs = WIDTHS[0]
        layers = []
        for width, depth in zip(WIDTHS, depths, strict=True):
            rest = [IrBlock(width, width, 1) for _ in range(depth - 1)]
            layers.append(nn.Sequential(IrBlock(inputs, width, 2), *rest))
            inputs = width
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.bn2 = nn.BatchNorm2d(FEATURE_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.prelu(self.bn1(self.conv1(x)))
        return self.bn2(self.layer4(self.layer3(self.layer2(self.layer1(x)))))  # type: ignore[no-any-return]


def load_iresnet18(path: Path | None) -> IResNet:
    """IResNet with 18 layers; see `_load`."""
    return _load((2, 2, 2, 2), path)


def load_iresnet50(path: Path | None) -> IResNet:
    """IResNet with 50 layers; see `_load`."""
    return _load((3, 4, 14, 3), path)


def _load(depths: tuple[int, int, int, int], path: Path | None) -> IResNet:
    """A network with the weights of a public ArcFace checkpoint.

    Its layout: `torch.save` of a state dict with the keys `conv1.weight`, `layer1.0.bn1.weight`
    ...; its head (`fc.*`, `features.*`) is dropped. None leaves random weights. Raises
    CheckpointError for anything else.
    """
    network = IResNet(depths)
    if path is not None:
        state = read_state(path)
        kept = {k: v for k, v in state.items() if not k.startswith(HEAD_PREFIXES)}
        load_exactly(network, kept, path)
    return network
