"""What a training run leaves behind in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.backbones import CheckpointError, load_backbone
from training.config import TrainingConfig
from training.lan import Lan
from training.trainer import BEST


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A run's averaged network and how it came to be."""

    network: Lan
    config: TrainingConfig
    provenance: dict[str, Any]
    epoch: int

    @property
    def is_final(self) -> bool:
        """Whether it was trained on training + validation images."""
        return bool(self.provenance.get("final", False))


def load_run(folder: Path, checkpoint: str = BEST) -> TrainedRun:
    """The averaged network of a run. Raises CheckpointError where there is none."""
    path = folder / checkpoint
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; train first, or name another --run")
    state = torch.load(path, map_location="cpu", weights_only=True)
    config = TrainingConfig.from_dict(state["config"])
    labels = state["provenance"]["labels"]
    network = Lan(load_backbone(config.backbone, None), len(labels), fusion=config.fusion)
    network.load_state_dict(state["average"])
    return TrainedRun(network.eval(), config, state["provenance"], state["epoch"])
