"""ResNet-18 in torchvision's layout, the paper's backbone (224x224, MS-Celeb-1M)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torchvision.models import resnet18

from training.backbones.checkpoints import load_exactly, read_state

FEATURE_CHANNELS = 512
INPUT_SIZE = 224


class ResNet18(nn.Module):
    """Aligned face [N,3,224,224] float32 RGB -> feature map F_o [N,512,7,7] (output of layer4)."""

    feature_channels = FEATURE_CHANNELS
    input_size = INPUT_SIZE

    def __init__(self) -> None:
        super().__init__()
        network = resnet18(weights=None)
        self.conv1, self.bn1, self.relu = network.conv1, network.bn1, network.relu
        self.maxpool = network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))  # type: ignore[no-any-return]


def load_resnet18(path: Path | None) -> ResNet18:
    """ResNet-18 with the weights of a public MS-Celeb-1M checkpoint.

    The layout such files have: `torch.save` of a dict with `state_dict` (or the state dict
    itself), keys optionally prefixed `module.`, and a classifier `fc.*` of any size, which is
    dropped. `None` leaves random weights. Raises CheckpointError for anything else.
    """
    network = ResNet18()
    if path is None:
        return network
    state = read_state(path)
    load_exactly(network, {k: v for k, v in state.items() if not k.startswith("fc.")}, path)
    return network
