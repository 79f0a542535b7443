"""MobileFaceNet (Chen et al., 2018) in the layout of InsightFace's "y1" recognition model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from training.backbones.checkpoints import CheckpointError, load_exactly

# The published weights were trained with this epsilon; PyTorch's default of 1e-5 changes the map.
BATCH_NORM_EPS = 1e-3
FEATURE_CHANNELS = 512
INPUT_SIZE = 112
# Of a bottleneck: pointwise, depthwise, pointwise without an activation.
PARTS = ("sep", "dw", "proj")
# InsightFace's recognition head and the reference pair that the file carries beside the backbone.
HEAD_PREFIXES = ("conv_6dw7_7.", "fc1_", "pre_fc1_", "reference.")


class ConvUnit(nn.Module):
    """Convolution without bias, batch normalisation and, unless `linear`, PReLU per channel."""

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: int = 1,
        *,
        stride: int = 1,
        depthwise: bool = False,
        linear: bool = False,
    ) -> None:
        super().__init__()
        inputs, outputs = channels
        self.conv = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride,
            padding=kernel // 2,
            groups=inputs if depthwise else 1,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPS)
        self.prelu: nn.Module = nn.Identity() if linear else nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N,inputs,H,W] -> [N,outputs,H/stride,W/stride]."""
        y: Tensor = self.prelu(self.bn(self.conv(x)))
        return y


class MobileFaceNet(nn.Module):
    """Aligned face [N,3,112,112] float32 RGB, (x - 127.5) / 128 -> feature map F_o [N,512,7,7]."""

    feature_channels = FEATURE_CHANNELS
    input_size = INPUT_SIZE

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = ConvUnit((3, 64), 3, stride=2)
        self.conv_2_dw = ConvUnit((64, 64), 3, depthwise=True)
        # (name, channels in / expanded / out, stride); a stride-1 bottleneck adds its input.
        self._bottlenecks: list[tuple[str, bool]] = []
        self._add_bottleneck("dconv_23", (64, 128, 64), stride=2)
        self._add_stack("res_3_block", 4, (64, 128, 64))
        self._add_bottleneck("dconv_34", (64, 256, 128), stride=2)
        self._add_stack("res_4_block", 6, (128, 256, 128))
        self._add_bottleneck("dconv_45", (128, 512, 128), stride=2)
        self._add_stack("res_5_block", 2, (128, 256, 128))
        self.conv_6sep = ConvUnit((128, FEATURE_CHANNELS))

    def _add_stack(self, prefix: str, count: int, widths: tuple[int, int, int]) -> None:
        for index in range(count):
            self._add_bottleneck(f"{prefix}{index}", widths, stride=1)

    def _add_bottleneck(self, name: str, widths: tuple[int, int, int], *, stride: int) -> None:
        inputs, expanded, outputs = widths
        # Flat names, so that the published file loads key by key.
        self.add_module(f"{name}_conv_sep", ConvUnit((inputs, expanded)))
        self.add_module(
            f"{name}_conv_dw",
            ConvUnit((expanded, expanded), 3, stride=stride, depthwise=True),
        )
        self.add_module(f"{name}_conv_proj", ConvUnit((expanded, outputs), linear=True))
        self._bottlenecks.append((name, stride == 1))

    def stages(self) -> Iterator[tuple[str, tuple[ConvUnit, ...]]]:
        """The network from input to output: (name, its units)."""
        yield "conv_1", (self.conv_1,)
        yield "conv_2_dw", (self.conv_2_dw,)
        for name, _ in self._bottlenecks:
            yield name, tuple(self._unit(f"{name}_conv_{part}") for part in PARTS)
        yield "conv_6sep", (self.conv_6sep,)

    def _unit(self, name: str) -> ConvUnit:
        unit = self.get_submodule(name)
        assert isinstance(unit, ConvUnit), "bottlenecks are made of them"
        return unit

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.conv_2_dw(self.conv_1(x))
        for name, residual in self._bottlenecks:
            y = x
            for part in PARTS:
                y = self._unit(f"{name}_conv_{part}")(y)
            x = x + y if residual else y
        return self.conv_6sep(x)  # type: ignore[no-any-return]


def load_mobilefacenet(path: Path | None) -> MobileFaceNet:
    """MobileFaceNet with the weights of a safetensors file in InsightFace's key names.

    `None` leaves random weights. Raises CheckpointError where the file is missing or no
    safetensors, or a key is missing, unknown or of another shape.
    """
    network = MobileFaceNet()
    if path is not None:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file (backbone weights, safetensors)")
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a safetensors file ({error})") from error
        state = {k: v for k, v in tensors.items() if not k.startswith(HEAD_PREFIXES)}
        load_exactly(network, state, path)
    return network


def reference_error(network: MobileFaceNet, path: Path) -> float:
    """Largest absolute difference between `network`'s map and the reference in the file."""
    tensors = load_file(path)
    network.eval()
    with torch.no_grad():
        feature_map = network(tensors["reference.input"])
    return float((feature_map - tensors["reference.feature_map"]).abs().max())
