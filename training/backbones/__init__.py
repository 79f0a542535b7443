"""Backbones that give a feature map F_o [N,512,7,7], by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.backbones.checkpoints import CheckpointError
from training.backbones.iresnet import IResNet, load_iresnet18, load_iresnet50
from training.backbones.mobilefacenet import MobileFaceNet, load_mobilefacenet
from training.backbones.resnet import ResNet18, load_resnet18

Backbone = MobileFaceNet | ResNet18 | IResNet

BACKBONES: dict[str, Callable[[Path | None], Any]] = {
    "mobilefacenet": load_mobilefacenet,
    "resnet18": load_resnet18,
    "iresnet18": load_iresnet18,
    "iresnet50": load_iresnet50,
}


def load_backbone(name: str, weights: Path | None) -> Backbone:
    """The backbone called `name`, with pretrained `weights` (None: random).

    Raises CheckpointError for an unknown name or a file that does not fit.
    """
    if name not in BACKBONES:
        raise CheckpointError(f"backbone {name!r} is unknown; one of {', '.join(BACKBONES)}")
    backbone: Backbone = BACKBONES[name](weights)
    return backbone


__all__ = [
    "BACKBONES",
    "Backbone",
    "CheckpointError",
    "IResNet",
    "MobileFaceNet",
    "ResNet18",
    "load_backbone",
]
