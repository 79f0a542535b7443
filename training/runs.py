"""What a training run leaves behind in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.backbones import CheckpointError, load_backbone
from training.config import TrainingConfig
from training.lan import Lan
from training.trainer import BEST, CHECKPOINT


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


def load_run(folder: Path, *, after: int | None = None) -> TrainedRun:
    """The averaged network of a run: its best one, or the one after epoch `after`.

    Raises CheckpointError where there is none; of the epochs, the best and the last are kept.
    """
    if not (folder / BEST).is_file():
        raise CheckpointError(f"{folder / BEST}: no such file; train first, or name another run")
    kept = []
    for path in (folder / BEST, folder / CHECKPOINT):
        if path.is_file():
            state = torch.load(path, map_location="cpu", weights_only=True)
            if after in (None, state["epoch"]):
                break
            kept.append(str(state["epoch"]))
    else:
        epochs = " and ".join(kept)
        raise CheckpointError(f"{folder}: has networks of epoch {epochs}, none of epoch {after}")
    config = TrainingConfig.from_dict(state["config"])
    labels = state["provenance"]["labels"]
    network = Lan(load_backbone(config.backbone, None), len(labels), fusion=config.fusion)
    network.load_state_dict(state["average"])
    return TrainedRun(network.eval(), config, state["provenance"], state["epoch"])
